package lan

import (
	"bytes"
	"slices"
	"strings"
)

// The kinds of things.
const (
	KindPrinter  = "printer"
	KindTV       = "tv"
	KindPhone    = "phone" // and tablets
	KindComputer = "computer"
	KindNAS      = "nas"
	KindCamera   = "camera"
	KindSpeaker  = "speaker"
	KindConsole  = "console"
	KindNetwork  = "network" // routers, access points
)

// guess says what a thing is, by what speaks for it the clearest: its model, what it said
// to a DHCP server, what it offers, how it is called, how it asks for an address, and who
// makes only such things.
func (t *thing) guess() {
	name := ""
	for _, n := range t.names {
		name += " " + n
	}
	for _, kind := range []string{
		wordKind(modelKinds[:], t.model),
		wordKind(classKinds[:], t.vendorClass),
		serviceKind(t.services),
		wordKind(nameKinds[:], name),
		paramsKind(t.params),
		makerKind(t.maker),
	} {
		if t.kind = kind; kind != "" {
			return
		}
	}
}

// hint is a word, in lower case, that speaks for a kind.
type hint struct{ word, kind string }

// wordKind is the kind of the first hint of which the text holds the word.
func wordKind(hints []hint, text string) string {
	text = strings.ToLower(text)
	for _, h := range hints {
		if strings.Contains(text, h.word) {
			return h.kind
		}
	}
	return ""
}

// modelKinds are words of models, as mDNS tells them.
var modelKinds = [...]hint{
	{"appletv", KindTV}, {"chromecast", KindTV}, {"bravia", KindTV}, {"shield", KindTV}, {"audioaccessory", KindSpeaker}, {"homepod", KindSpeaker},
	{"google home", KindSpeaker}, {"nest audio", KindSpeaker}, {"nest mini", KindSpeaker}, {"sonos", KindSpeaker},
	{"iphone", KindPhone}, {"ipad", KindPhone}, {"macbook", KindComputer}, {"imac", KindComputer}, {"macmini", KindComputer},
	{"macpro", KindComputer}, {"mac1", KindComputer}, {"macsamba", KindComputer}, {"rackmac", KindNAS}, {"xserve", KindNAS}, {"timecapsule", KindNAS}, {"airport", KindNetwork},
	{"laserjet", KindPrinter}, {"officejet", KindPrinter}, {"deskjet", KindPrinter}, {"envy", KindPrinter}, {"brother ", KindPrinter}, {"pixma", KindPrinter},
	{"ecotank", KindPrinter}, {"synology", KindNAS}, {"qnap", KindNAS}, {"xbox", KindConsole}, {"playstation", KindConsole},
}

// classKinds are words of vendor classes.
var classKinds = [...]hint{
	{"xbox", KindConsole}, {"playstation", KindConsole}, {"ps4", KindConsole}, {"ps5", KindConsole}, {"nintendo", KindConsole},
	{"msft", KindComputer}, {"android-dhcp", KindPhone}, {"dhcpcd-5.5.6", KindPhone}, {"jetdirect", KindPrinter}, {"hewlett-packard", KindPrinter},
	{"mfg=", KindPrinter}, {"canon", KindPrinter}, {"epson", KindPrinter}, {"brother", KindPrinter}, {"printer", KindPrinter}, {"roku", KindTV}, {"tizen", KindTV},
	{"webos", KindTV}, {"dahua", KindCamera}, {"hikvision", KindCamera}, {"ubnt", KindNetwork}, {"mikrotik", KindNetwork},
	{"arubaap", KindNetwork}, {"ciscoap", KindNetwork}, {"synology", KindNAS}, {"networkmanager", KindComputer}, {"systemd-networkd", KindComputer},
}

// nameKinds are words of names.
var nameKinds = [...]hint{
	{"iphone", KindPhone}, {"ipad", KindPhone}, {"galaxy", KindPhone}, {"pixel", KindPhone}, {"android", KindPhone}, {"oneplus", KindPhone}, {"redmi", KindPhone}, {"phone", KindPhone},
	{"macbook", KindComputer}, {"imac", KindComputer}, {"mac-mini", KindComputer}, {"macmini", KindComputer}, {"laptop", KindComputer}, {"desktop", KindComputer},
	{"thinkpad", KindComputer}, {"notebook", KindComputer}, {"raspberrypi", KindComputer},
	{"printer", KindPrinter}, {"drucker", KindPrinter}, {"laserjet", KindPrinter}, {"officejet", KindPrinter}, {"deskjet", KindPrinter}, {"epson", KindPrinter},
	{"chromecast", KindTV}, {"appletv", KindTV}, {"apple-tv", KindTV}, {"apple tv", KindTV}, {"roku", KindTV}, {"bravia", KindTV}, {"firetv", KindTV}, {"fire-tv", KindTV}, {"webostv", KindTV},
	{"smarttv", KindTV}, {"smart-tv", KindTV}, {"samsung-tv", KindTV}, {"lgwebos", KindTV},
	{"playstation", KindConsole}, {"ps4-", KindConsole}, {"ps5-", KindConsole}, {"xbox", KindConsole}, {"nintendo", KindConsole}, {"steamdeck", KindConsole},
	{"homepod", KindSpeaker}, {"sonos", KindSpeaker}, {"echo-", KindSpeaker}, {"speaker", KindSpeaker},
	{"camera", KindCamera}, {"ipcam", KindCamera}, {"doorbell", KindCamera}, {"diskstation", KindNAS}, {"synology", KindNAS}, {"qnap", KindNAS}, {"truenas", KindNAS}, {"mycloud", KindNAS},
	{"openwrt", KindNetwork}, {"fritz", KindNetwork}, {"repeater", KindNetwork}, {"unifi", KindNetwork}, {"switch-", KindNetwork},
}

// serviceKind is what a thing is that offers this. Computers share printers and files, too.
func serviceKind(services []string) string {
	has := func(any ...string) bool {
		return slices.ContainsFunc(any, func(s string) bool { return slices.Contains(services, s) })
	}
	computer := has("_ssh._tcp", "_rfb._tcp", "_workstation._tcp", "_companion-link._tcp", "_smb._tcp", "_sftp-ssh._tcp", "_udisks-ssh._tcp")
	switch {
	case has("_pdl-datastream._tcp", "_printer._tcp", "_uscan._tcp", "_scanner._tcp"), has("_ipp._tcp", "_ipps._tcp") && !computer:
		return KindPrinter
	case has("_adisk._tcp", "_nfs._tcp", "_qdiscover._tcp", "_syno._tcp"), has("_smb._tcp") && has("_afpovertcp._tcp") && !has("_companion-link._tcp", "_rfb._tcp"):
		return KindNAS
	case has("_apple-mobdev2._tcp", "_apple-mobdev._tcp"):
		return KindPhone
	case has("_sonos._tcp", "_sues800device._tcp", "_musc._tcp", "_heos-audio._tcp", "_bose._tcp"):
		return KindSpeaker
	case has("_androidtvremote2._tcp", "_androidtvremote._tcp", "_amzn-wplay._tcp", "_viziocast._tcp", "_mediaremotetv._tcp", "_googlecast._tcp"):
		return KindTV
	case has("_nvstream._tcp", "_rfb._tcp", "_sftp-ssh._tcp", "_workstation._tcp", "_udisks-ssh._tcp"):
		return KindComputer
	case has("_rtsp._tcp", "_axis-video._tcp", "_psia._tcp", "_cgi._tcp"):
		return KindCamera
	case has("_airplay._tcp") && !has("_companion-link._tcp"):
		return KindTV
	case has("_raop._tcp", "_spotify-connect._tcp") && !computer:
		return KindSpeaker
	case has("_ubnt-disc._udp", "_mikrotik._tcp"):
		return KindNetwork
	}
	return ""
}

// paramsKind is what asks a DHCP server for these, in this order: the lists of systems
// differ, and those of one hardly change.
func paramsKind(params []byte) string {
	for _, f := range [...]struct{ begins, kind string }{
		{"\x01\x79\x03\x06\x0f\x6c\x72\x77\xfc\x5f", KindComputer}, // macOS
		{"\x01\x79\x03\x06\x0f\x72\x77\xfc\x5f", KindComputer},     // macOS to 12
		{"\x01\x79\x03\x06\x0f\x6c\x72\x77\xfc", KindPhone},        // iOS
		{"\x01\x79\x03\x06\x0f\x72\x77\xfc", KindPhone},            // iOS to 15
		{"\x01\x03\x06\x0f\x77\x5f\xfc\x2c\x2e", KindComputer},     // macOS to 10.12
		{"\x01\x03\x06\x0f\x1f\x21\x2b\x2c\x2e\x2f", KindComputer}, // Windows
		{"\x01\x0f\x03\x06\x2c\x2e\x2f\x1f\x21", KindComputer},     // Windows to 8
		{"\x01\x03\x06\x0f\x1a\x1c\x33\x3a\x3b\x2b", KindPhone},    // Android
		{"\x01\x79\x21\x03\x06\x0f\x1c\x33\x3a\x3b", KindPhone},    // Android to 5
	} {
		if bytes.HasPrefix(params, []byte(f.begins)) {
			return f.kind
		}
	}
	return ""
}

// makersOf are the makers that make one kind of things for the home.
var makersOf = [...]struct{ kind, makers string }{
	{KindPrinter, "|Brother|Epson|Lexmark|Kyocera|Ricoh|Xerox|OKI|Kodak|Canon|"},
	{KindSpeaker, "|Sonos|Bose|Denon|Harman|Bang & Olufsen|Cambridge Audio|Onkyo|Sennheiser|Tonies|Yamaha|"},
	{KindConsole, "|Nintendo|Sony Interactive|"},
	{KindNAS, "|Synology|QNAP|WD|Seagate|"},
	{KindCamera, "|Hikvision|Dahua|Axis|Reolink|Ring|Arlo|Wyze|Amcrest|Foscam|Ezviz|"},
	{KindTV, "|Roku|Vizio|Vestel|Hisense|TiVo|Skyworth|"},
	{KindPhone, "|OPPO|vivo|Realme|Honor|Motorola|HMD|OnePlus|Tecno|itel|Infinix|HTC|Fairphone|Nothing|"},
	{KindComputer, "|Intel|Dell|Lenovo|Acer|MSI|ASRock|Gigabyte|Framework|Raspberry Pi|Compal|Quanta|Pegatron|Beelink|Fujitsu|"},
	{KindNetwork, "|AVM|eero|NETGEAR|Ubiquiti|MikroTik|Zyxel|D-Link|Linksys|Cisco-Linksys|Sagemcom|Technicolor|Arris|" +
		"Arcadyan|Askey|DrayTek|Freebox|GL.iNet|Keenetic|Plume|Sercomm|Buffalo|ADB|Humax|"},
}

func makerKind(maker string) string {
	for _, m := range makersOf {
		if maker != "" && strings.Contains(m.makers, "|"+maker+"|") {
			return m.kind
		}
	}
	return ""
}
