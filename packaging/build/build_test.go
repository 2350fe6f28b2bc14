package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	checkout = "../.."
	commit   = "v1.2.3-4-gabcdef0"
	version  = "1.2.3+4.gabcdef0"
	epoch    = 1_700_000_000
)

// built makes all packages of a stand-in for the daemon.
func built(t *testing.T) string {
	t.Helper()
	standIn, err := os.ReadFile("testdata/subnetd")
	if err != nil {
		t.Fatal(err)
	}
	return builtOf(t, standIn, commit)
}

func builtOf(t *testing.T, daemon []byte, commit string) string {
	t.Helper()
	bins, out := t.TempDir(), t.TempDir()
	for _, target := range targets() {
		if err := os.WriteFile(filepath.Join(bins, "subnetd-"+target.binary), daemon, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"-root", checkout, "-bin", bins, "-out", out, "-version", commit, "-epoch", fmt.Sprint(epoch)}
	if err := run(args, io.Discard); err != nil {
		t.Fatal(err)
	}
	return out
}

// tool runs a program of the system, one that the packages are unpacked with.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		lacking(t, "there is no "+name)
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out.Bytes(), complaints.Bytes())
	}
	return out.String()
}

// lacking skips a test for a visitor, and fails it in CI.
func lacking(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// TestSameBytes: nothing of the machine, of the time or of chance is in a package.
func TestSameBytes(t *testing.T) {
	one, two := built(t), built(t)
	if got, want := names(t, one), names(t, two); !slices.Equal(got, want) || len(got) != 18 {
		t.Fatalf("%d packages, then %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for _, name := range names(t, one) {
		a, errA := os.ReadFile(filepath.Join(one, name))
		b, errB := os.ReadFile(filepath.Join(two, name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs from one build to the next (%v, %v)", name, errA, errB)
		}
	}
}

// ascending are commits as time goes.
var ascending = []string{"2ad8767", "v0.1.0", "v0.1.0-1-gfff0000", "v0.1.0-12-gaaa0000", "v0.1.1", "v1.0.0"}

func TestVersion(t *testing.T) {
	at := time.Unix(epoch, 0).UTC()
	for describe, want := range map[string][2]string{
		"v1.2.3":                  {"1.2.3", "1.2.3-r0"},
		"v1.2.3-dirty":            {"1.2.3+dirty", "1.2.3_p-r0"},
		"v1.2.3-4-gabcdef0":       {"1.2.3+4.gabcdef0", "1.2.3_git4~abcdef0-r0"},
		"v1.2.3-4-gabcdef0-dirty": {"1.2.3+4.gabcdef0+dirty", "1.2.3_git4_p~abcdef0-r0"},
		"2ad8767":                 {"0~20231114221320.g2ad8767", "0_git20231114221320~2ad8767-r0"},
		"":                        {}, // refused
		"dev":                     {},
		"v1.2.3 ":                 {},
		"v1.2-rc1":                {},
		"v1.2.3\nArchitecture: x": {},
	} {
		r, err := revisionOf(describe, at)
		if (err != nil) != (want == [2]string{}) || err == nil && want != [2]string{r.debian(), r.alpine()} {
			t.Errorf("of %q: %q, %q, %v, want %q", describe, r.debian(), r.alpine(), err, want)
		}
	}
	for i, describe := range ascending[1:] { // by the judgement of dpkg
		older, _ := revisionOf(ascending[i], at)
		newer, _ := revisionOf(describe, at)
		tool(t, "dpkg", "--compare-versions", older.debian(), "lt", newer.debian())
	}
}

// listing is what tar tells of an archive: permissions, owner and name of each member.
func listing(verbose string) string {
	var b strings.Builder
	for line := range strings.Lines(verbose) {
		f := strings.Fields(line) // mode owner size date time name
		fmt.Fprintln(&b, f[0], f[1], f[3], f[len(f)-1])
	}
	return b.String()
}

// kibibytes is how many all files of a listing have, rounded up.
func kibibytes(t *testing.T, verbose string) int {
	all := 0
	for line := range strings.Lines(verbose) {
		n, err := strconv.Atoi(strings.Fields(line)[2])
		if err != nil {
			t.Fatal(err)
		}
		all += n
	}
	return (all + 1023) / 1024
}

const debFiles = `drwxr-xr-x 0/0 2023-11-14 ./
drwxr-xr-x 0/0 2023-11-14 ./etc/
drwxr-xr-x 0/0 2023-11-14 ./etc/subnetd/
-rw------- 0/0 2023-11-14 ./etc/subnetd/subnetd.toml
drwxr-xr-x 0/0 2023-11-14 ./usr/
drwxr-xr-x 0/0 2023-11-14 ./usr/lib/
drwxr-xr-x 0/0 2023-11-14 ./usr/lib/systemd/
drwxr-xr-x 0/0 2023-11-14 ./usr/lib/systemd/system/
-rw-r--r-- 0/0 2023-11-14 ./usr/lib/systemd/system/subnetd-guard.service
-rw-r--r-- 0/0 2023-11-14 ./usr/lib/systemd/system/subnetd-web.socket
-rw-r--r-- 0/0 2023-11-14 ./usr/lib/systemd/system/subnetd.service
drwxr-xr-x 0/0 2023-11-14 ./usr/sbin/
-rwxr-xr-x 0/0 2023-11-14 ./usr/sbin/subnetd
`

func TestDeb(t *testing.T) {
	file := filepath.Join(built(t), "subnetd_"+version+"_arm64.deb")
	if got := tool(t, "ar", "t", file); got != "debian-binary\ncontrol.tar.gz\ndata.tar.gz\n" {
		t.Errorf("members, as ar has them:\n%s", got)
	}
	dir := t.TempDir()
	tool(t, "dpkg-deb", "--raw-extract", file, dir)
	data := filepath.Join(t.TempDir(), "data.tar")
	if err := os.WriteFile(data, []byte(tool(t, "dpkg-deb", "--fsys-tarfile", file)), 0o600); err != nil {
		t.Fatal(err)
	}
	files := tool(t, "tar", "--numeric-owner", "-tvf", data)
	if got := listing(files); got != debFiles {
		t.Errorf("files:\n%s", got)
	}
	if got := tool(t, "dpkg-deb", "--field", file, "Package", "Version", "Architecture", "Installed-Size"); got !=
		fmt.Sprintf("Package: subnetd\nVersion: %s\nArchitecture: arm64\nInstalled-Size: %d\n", version, kibibytes(t, files)) {
		t.Errorf("fields:\n%s", got)
	}
	if got := names(t, filepath.Join(dir, "DEBIAN")); !slices.Equal(got, []string{"conffiles", "control", "md5sums", "postinst", "postrm", "prerm"}) {
		t.Errorf("for dpkg: %q", got)
	}
	for _, script := range []string{"postinst", "postrm", "prerm"} {
		if st, err := os.Stat(filepath.Join(dir, "DEBIAN", script)); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", script, st.Mode(), err)
		}
	}
	sums := exec.Command("md5sum", "-c", "DEBIAN/md5sums")
	sums.Dir = dir
	if out, err := sums.CombinedOutput(); err != nil {
		t.Errorf("md5sums: %v\n%s", err, out)
	}
}

const ipkFiles = `drwxr-xr-x 0/0 2023-11-14 ./
drwxr-xr-x 0/0 2023-11-14 ./etc/
drwxr-xr-x 0/0 2023-11-14 ./etc/config/
-rw------- 0/0 2023-11-14 ./etc/config/subnetd
drwxr-xr-x 0/0 2023-11-14 ./etc/init.d/
-rwxr-xr-x 0/0 2023-11-14 ./etc/init.d/subnetd
-rwxr-xr-x 0/0 2023-11-14 ./etc/init.d/subnetd-guard
drwxr-xr-x 0/0 2023-11-14 ./etc/uci-defaults/
-rwxr-xr-x 0/0 2023-11-14 ./etc/uci-defaults/90-subnetd
drwxr-xr-x 0/0 2023-11-14 ./lib/
drwxr-xr-x 0/0 2023-11-14 ./lib/upgrade/
drwxr-xr-x 0/0 2023-11-14 ./lib/upgrade/keep.d/
-rw-r--r-- 0/0 2023-11-14 ./lib/upgrade/keep.d/subnetd
drwxr-xr-x 0/0 2023-11-14 ./usr/
drwxr-xr-x 0/0 2023-11-14 ./usr/libexec/
drwxr-xr-x 0/0 2023-11-14 ./usr/libexec/subnetd/
-rwxr-xr-x 0/0 2023-11-14 ./usr/libexec/subnetd/firewall
-rwxr-xr-x 0/0 2023-11-14 ./usr/libexec/subnetd/leave
-rwxr-xr-x 0/0 2023-11-14 ./usr/libexec/subnetd/login
drwxr-xr-x 0/0 2023-11-14 ./usr/sbin/
-rwxr-xr-x 0/0 2023-11-14 ./usr/sbin/subnetd
drwxr-xr-x 0/0 2023-11-14 ./usr/share/
drwxr-xr-x 0/0 2023-11-14 ./usr/share/luci/
drwxr-xr-x 0/0 2023-11-14 ./usr/share/luci/menu.d/
-rw-r--r-- 0/0 2023-11-14 ./usr/share/luci/menu.d/subnetd.json
drwxr-xr-x 0/0 2023-11-14 ./usr/share/rpcd/
drwxr-xr-x 0/0 2023-11-14 ./usr/share/rpcd/acl.d/
-rw-r--r-- 0/0 2023-11-14 ./usr/share/rpcd/acl.d/subnetd.json
drwxr-xr-x 0/0 2023-11-14 ./www/
drwxr-xr-x 0/0 2023-11-14 ./www/luci-static/
drwxr-xr-x 0/0 2023-11-14 ./www/luci-static/resources/
drwxr-xr-x 0/0 2023-11-14 ./www/luci-static/resources/view/
-rw-r--r-- 0/0 2023-11-14 ./www/luci-static/resources/view/subnetd.js
`

const ipkAbout = `drwxr-xr-x 0/0 2023-11-14 ./
-rw-r--r-- 0/0 2023-11-14 ./conffiles
-rw-r--r-- 0/0 2023-11-14 ./control
-rwxr-xr-x 0/0 2023-11-14 ./postinst
-rwxr-xr-x 0/0 2023-11-14 ./prerm
-rwxr-xr-x 0/0 2023-11-14 ./prerm-pkg
`

// unpackIPK takes an ipk apart and gives where its members are.
func unpackIPK(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	tool(t, "tar", "-xzf", file, "-C", dir)
	return dir
}

func TestIPK(t *testing.T) {
	file := filepath.Join(built(t), "subnetd_"+version+"_mipsel_24kc.ipk")
	if got := tool(t, "tar", "-tzf", file); got != "./debian-binary\n./data.tar.gz\n./control.tar.gz\n" {
		t.Errorf("members:\n%s", got)
	}
	dir := unpackIPK(t, file)
	for archive, want := range map[string]string{"data": ipkFiles, "control": ipkAbout} {
		if got := listing(tool(t, "tar", "--numeric-owner", "-tvzf", filepath.Join(dir, archive+".tar.gz"))); got != want {
			t.Errorf("%s:\n%s", archive, got)
		}
	}
	control := tool(t, "tar", "-xzOf", filepath.Join(dir, "control.tar.gz"), "./control")
	for _, want := range []string{"Package: subnetd\n", "Version: " + version + "\n", "Architecture: mipsel_24kc\n", "Depends: ", "Installed-Size: "} {
		if !strings.Contains(control, want) {
			t.Errorf("no %q in\n%s", want, control)
		}
	}
	if got := tool(t, "tar", "-xzOf", filepath.Join(dir, "control.tar.gz"), "./conffiles"); got != uciPath+"\n" {
		t.Errorf("conffiles:\n%s", got)
	}
}

// TestEachHasItsBinary: an architecture that got the daemon of another would do nothing.
func TestEachHasItsBinary(t *testing.T) {
	bins, out := t.TempDir(), t.TempDir()
	for _, target := range targets() {
		if err := os.WriteFile(filepath.Join(bins, "subnetd-"+target.binary), []byte("the daemon of "+target.binary), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := run([]string{"-root", checkout, "-bin", bins, "-out", out, "-version", commit}, io.Discard); err != nil {
		t.Fatal(err)
	}
	for arch, binary := range map[string]string{
		"mipsel_24kc.ipk": "mipsle", "mips_24kc.ipk": "mips", "arm_cortex-a9.ipk": "armv5", "arm_cortex-a7_neon-vfpv4.ipk": "armv7",
		"mipsel_24kc.apk": "mipsle", "aarch64_generic.apk": "arm64", "arm_cortex-a9.apk": "armv5",
		"aarch64_cortex-a53.ipk": "arm64", "aarch64_generic.ipk": "arm64", "x86_64.ipk": "amd64",
		"amd64.deb": "amd64", "arm64.deb": "arm64", "armhf.deb": "armv6", "riscv64.deb": "riscv64",
	} {
		if strings.HasSuffix(arch, ".apk") {
			got := readAPKFile(t, filepath.Join(out, "subnetd_"+apkVersion+"_"+arch))
			if !slices.ContainsFunc(got.files, func(f readFile) bool { return f.path == daemonPath && f.body == "the daemon of "+binary }) {
				t.Errorf("%s has another", arch)
			}
			continue
		}
		file := filepath.Join(out, "subnetd_"+version+"_"+arch)
		data := filepath.Join(t.TempDir(), "data.tar.gz")
		if strings.HasSuffix(arch, ".ipk") {
			data = filepath.Join(unpackIPK(t, file), "data.tar.gz")
		} else if err := os.WriteFile(data, []byte(tool(t, "ar", "p", file, "data.tar.gz")), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, want := tool(t, "tar", "-xzOf", data, "."+daemonPath), "the daemon of "+binary; got != want {
			t.Errorf("%s has %s", arch, got)
		}
	}
}

// TestFeed: what the feed's Makefile installs is what the packages have.
func TestFeed(t *testing.T) {
	b, err := os.ReadFile(checkout + "/packaging/openwrt/feed/subnetd/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	feed := string(b)
	p := pack{format: ipk{}}
	if err := p.fill(os.DirFS(checkout), nil); err != nil {
		t.Fatal(err)
	}
	installed := regexp.MustCompile(`(?m)^\t\$\(INSTALL_(BIN|CONF|DATA)\) \S+?([^/\s]+) \$\(1\)(\S+)$`).FindAllStringSubmatch(feed, -1)
	for _, f := range p.files {
		if strings.HasPrefix(f.path, "/lib/upgrade/") {
			continue // made of conffiles that are no files
		}
		dir, base := filepath.Split(f.path)
		found := slices.ContainsFunc(installed, func(m []string) bool {
			to := m[3] == dir && (m[2] == base || m[2] == "*") || m[3] == f.path
			return to && (m[1] == "BIN") == (f.mode == 0o755)
		})
		if !found {
			t.Errorf("%s is not installed", f.path)
		}
	}
	for _, line := range strings.Fields(p.conffiles()) {
		if !strings.Contains(feed, "\n"+line+"\n") {
			t.Errorf("%s is no conffile", line)
		}
	}
	for _, s := range p.scripts {
		if s.path == "/prerm-pkg" && !strings.Contains(feed, "define Package/subnetd/prerm\n"+strings.ReplaceAll(string(s.body), "$", "$$")+"endef\n") {
			t.Error("its prerm is another")
		}
	}
	for _, dep := range openwrtDepends() {
		if !strings.Contains(feed, " +"+dep) {
			t.Errorf("it does not depend on %s", dep)
		}
	}
}
