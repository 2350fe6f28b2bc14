/* A plugin of QEMU that counts the instructions a guest of one CPU executes, into the file that the argument count=PATH
 * names: eight bytes in this machine's order, to be read at any time. What a packet costs in instructions does not depend
 * on how busy this machine is; what it costs in seconds does. Debian has no header of the plugin's interface: what is used
 * of it is declared here. */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct qemu_plugin_tb;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*cb)(uint64_t id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, enum qemu_plugin_op op, void *ptr, uint64_t imm);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);

int qemu_plugin_version = 1;

static uint64_t *executed;

/* A block of instructions runs to its end, but for exceptions: it is counted as a whole when it is entered. */
static void on_translation(uint64_t id, struct qemu_plugin_tb *tb)
{
	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, executed, qemu_plugin_tb_n_insns(tb));
}

static uint64_t *map(const char *path)
{
	int fd = open(path, O_RDWR);
	if (fd < 0)
		return NULL;
	void *p = mmap(NULL, sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return p == MAP_FAILED ? NULL : p;
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	(void)info;
	if (argc != 1 || strncmp(argv[0], "count=", 6) != 0)
		return -1;
	executed = map(argv[0] + 6);
	if (!executed)
		return -1;
	*executed = 0; /* since it was switched on */
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	return 0;
}
