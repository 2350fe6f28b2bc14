package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestImage: the package for the router's processor and release is what ImageBuilder gets,
// under a name that it finds it by.
func TestImage(t *testing.T) {
	packages := built(t)
	makefile, err := os.ReadFile("testdata/imagebuilder/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ config, want string }{
		"24.10": {"CONFIG_TARGET_ARCH_PACKAGES=\"arm_cortex-a7_neon-vfpv4\"\n# CONFIG_USE_APK is not set\n",
			"image a_router: subnetd luci -ppp\nother.ipk\nsubnetd_" + version + "_arm_cortex-a7_neon-vfpv4.ipk\n"},
		"25.12": {"CONFIG_TARGET_ARCH_PACKAGES=\"mipsel_24kc\"\nCONFIG_USE_APK=y\n",
			"image a_router: subnetd luci -ppp\nother.ipk\nsubnetd-" + apkVersion + ".apk\n"},
		"a processor of which there is none": {"CONFIG_TARGET_ARCH_PACKAGES=\"sparc\"\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			builder, out := t.TempDir(), t.TempDir()
			if err := os.Mkdir(filepath.Join(builder, "packages"), 0o755); err != nil {
				t.Fatal(err)
			}
			for file, text := range map[string]string{".config": tc.config, "Makefile": string(makefile),
				"packages/other.ipk": "", "packages/subnetd_0.1.0_mipsel_24kc.ipk": "", "packages/subnetd-0.1.0-r0.apk": ""} {
				if err := os.WriteFile(filepath.Join(builder, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(checkout+"/firmware/openwrt/build.sh", builder, "a_router", "luci", "-ppp")
			cmd.Env = append(os.Environ(), "SUBNETD_PACKAGES="+packages, "SUBNETD_IMAGES="+out)
			said, err := cmd.CombinedOutput()
			if (err == nil) != (tc.want != "") {
				t.Fatalf("%v\n%s", err, said)
			}
			if tc.want == "" {
				return
			}
			got, err := os.ReadFile(filepath.Join(out, "openwrt-a_router-sysupgrade.bin"))
			if err != nil || string(got) != tc.want {
				t.Errorf("%v\n%s", err, got)
			}
		})
	}
}

// TestLuCI: the entry of the menu leads to the view, as far as the user may see it.
func TestLuCI(t *testing.T) {
	var menu map[string]struct {
		Action  struct{ Type, Path string }
		Depends struct{ ACL []string }
	}
	if err := json.Unmarshal([]byte(packaged(t, "/usr/share/luci/menu.d/subnetd.json")), &menu); err != nil {
		t.Fatal(err)
	}
	var acl map[string]struct{ Read, Write map[string][]string }
	if err := json.Unmarshal([]byte(packaged(t, "/usr/share/rpcd/acl.d/subnetd.json")), &acl); err != nil {
		t.Fatal(err)
	}
	entry := menu["admin/services/subnetd"]
	if entry.Action.Type != "view" || len(entry.Depends.ACL) != 1 {
		t.Fatalf("%+v", menu)
	}
	rights, ok := acl[entry.Depends.ACL[0]]
	if !ok || rights.Write != nil || len(rights.Read) != 1 || strings.Join(rights.Read["uci"], " ") != "subnetd" {
		t.Errorf("%+v", acl)
	}
	view := packaged(t, "/www/luci-static/resources/view/"+entry.Action.Path+".js")
	const luci = `
const [text, listen] = process.argv.slice(1);
const links = [];
const E = (tag, attrs) => tag === "a" && links.push(attrs.href);
const uci = { load: (c) => c, get: (...at) => (at.join(".") === "subnetd.web.listen" ? listen || null : "?") };
const view = { extend: (v) => v };
const shown = new Function("view", "uci", "E", "_", "window", text)(view, uci, E, (s) => s, { location: { hostname: "192.168.1.1" } });
if (shown.load() !== "subnetd") throw new Error("loads another");
shown.render();
console.log(links.join(" "));`
	for listen, want := range map[string]string{
		"": "http://192.168.1.1:8411/\n", ":80": "http://192.168.1.1:80/\n", "10.0.0.1:8411": "http://10.0.0.1:8411/\n", "[fd00::1]:81": "http://[fd00::1]:81/\n",
	} {
		if got := tool(t, "node", "-e", luci, "--", view, listen); got != want {
			t.Errorf("page at %q: %q, want %q", listen, got, want)
		}
	}
}
