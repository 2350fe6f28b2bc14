# subnetd. `make` builds bin/subnetd; `make test` is everything, on a fresh Debian with Go and root.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS ?= -s -w -X main.version=$(VERSION)

# Inlining makes the program larger by a tenth. It is kept where every packet passes, and for the runtime.
HOT     := golang.zx2c4.com/wireguard/device golang.zx2c4.com/wireguard/replay golang.zx2c4.com/wireguard/tun \
           golang.org/x/crypto/chacha20 golang.org/x/crypto/chacha20poly1305 golang.org/x/crypto/blake2s \
           golang.org/x/crypto/internal/poly1305 golang.org/x/crypto/internal/alias vendor/golang.org/x/crypto/... \
           crypto/subtle crypto/internal/fips140/subtle crypto/internal/fips140/aes/... crypto/internal/fips140/sha256 \
           crypto/internal/fips140/edwards25519/field crypto/internal/fips140deps/... \
           runtime internal/runtime/... internal/bytealg internal/byteorder sync sync/atomic internal/sync \
           bytes bufio encoding/binary math/bits syscall internal/poll golang.org/x/sys/unix tailscale.com/derp \
           subnetd/subnetd/underlay subnetd/subnetd/relay
# Where these have no assembly, a third of them is calls, which the compiler is told to spare. Go's cache knows the file's name
# only: one of other contents takes a `go clean -cache`. After a change of Go or the module: go test ./subnetd -run TestInline -update
CIPHERS := $(foreach at,golang.org vendor/golang.org,$(at)/x/crypto/chacha20 $(at)/x/crypto/internal/poly1305)
GCFLAGS := -gcflags=all=-l $(HOT:%=-gcflags=%=) $(CIPHERS:%=-gcflags=%=-pgoprofile=build/inline.txt)

.PHONY: build webui test unit mips lab guests test-qemu test-debian bench run cross packages image test-appliance lint clean peers provision

build: webui
	standins=$$(build/modules.sh bin) && CGO_ENABLED=0 $(GO) build -trimpath $$standins $(GCFLAGS) -ldflags "$(LDFLAGS)" -o bin/subnetd ./subnetd

# The page, into webui/dist, if Node is here and anything of it is newer.
webui:
	webui/build.sh

test: provision build peers guests
	testbed/all.sh

# Programs of the system that the tests use.
provision:
	testbed/provision.sh

# Stock tailscale and Headscale, once, into ~/.cache/subnetd.
peers:
	testbed/peers/build.sh

lint:
	testbed/lint.sh

unit:
	testbed/unit.sh

# The pure packages once more on a 32-bit big-endian and little-endian router CPU, where qemu-user is installed.
mips:
	testbed/mips.sh

# The daemon among strangers in network namespaces.
lab: build peers
	testbed/lab.sh

# What the guests boot and run: Debian's kernels once, into ~/.cache/subnetd, and the daemon for their processors.
guests: webui
	testbed/provision.sh guests
	testbed/qemu/build.sh
	testbed/guests.sh bin/guests "$(LDFLAGS)" $(GCFLAGS)

# The daemon in routers of four kinds, with the kernel's WireGuard, among strangers outside. Fifteen minutes, in which the machine
# should do nothing else; what bears that it does is a part of `make test`. With SUBNETD_LONG=1 it takes the time that a router has:
# a killed daemon stays away for three minutes, memory and paths are watched for ten.
test-qemu: build peers guests
	testbed/routers.sh

# The package on a Debian board: systemd 252 in a guest. Debian is unpacked once, into ~/.cache/subnetd.
test-debian: build
	testbed/provision.sh debian
	$(GO) test -count=1 -v ./testbed/debian

bench: provision build peers guests
	testbed/peers/guests.sh
	SUBNETD_BIN=$(CURDIR)/bin/subnetd $(GO) test -count=1 -v -timeout 120m -run '^$$' -bench . -benchtime 1x ./testbed/...

# A home mesh on this machine until Ctrl-C.
run: build
	testbed/run.sh

cross: webui
	testbed/cross.sh bin/cross "$(LDFLAGS)" $(GCFLAGS)

# What OpenWrt's and Debian's package managers install, into bin/packages. The same commit gives the same bytes.
packages: cross
	$(GO) run ./packaging/build -version "$$(git describe --tags --always --dirty)" -epoch "$$(git log -1 --format=%ct)"

# An image of the appliance into bin/image/BOARD: qemu-malta, qemu-armv7, qemu-arm64, x86_64 or rpi. The same commit gives the
# same bytes.
image: webui
	testbed/provision.sh images
	firmware/image/build.sh "$(BOARD)" "$(VERSION)" "$$(git log -1 --format=%ct)" "$(LDFLAGS)" $(GCFLAGS)

# Images as a home's router in QEMU, among strangers; with power cuts and updates that do not come up. Long.
APPLIANCES ?= x86_64 qemu-malta qemu-armv7 qemu-arm64
test-appliance: build peers
	testbed/provision.sh guests images
	for board in $(APPLIANCES); do $(MAKE) image BOARD=$$board || exit 1; done
	SUBNETD_BOARDS="$(APPLIANCES)" $(GO) test -count=1 -v -timeout 120m ./testbed/appliance

clean:
	rm -rf bin webui/node_modules testbed/page/node_modules
	find webui/dist -mindepth 1 -not -name .gitignore -delete
