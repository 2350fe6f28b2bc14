package underlay

import (
	"bytes"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	kindIP1 = "urn:schemas-upnp-org:service:WANIPConnection:1"
	kindIP2 = "urn:schemas-upnp-org:service:WANIPConnection:2"
	kindPPP = "urn:schemas-upnp-org:service:WANPPPConnection:1"
)

// ssdpAnswers are what comes back from a search at 192.168.1.1.
var ssdpAnswers = []struct{ name, wire, want string }{
	{"miniupnpd", "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n" +
		"USN: uuid:00bcfe2f-dfef-4c0c-a1ca-dc1d0d79d2bd::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nEXT:\r\n" +
		"SERVER: OpenWRT/OpenWrt UPnP/1.1 MiniUPnPd/2.2.3\r\nLOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n" +
		"OPT: \"http://schemas.upnp.org/upnp/1/0/\"; ns=01\r\n01-NLS: 1\r\nBOOTID.UPNP.ORG: 1\r\n\r\n",
		"http://192.168.1.1:5000/rootDesc.xml"},
	{"fritz.box", "HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:49000/igddesc.xml\r\nSERVER: FRITZ!Box UPnP/1.0 AVM FRITZ!Box\r\n" +
		"CACHE-CONTROL: max-age=1800\r\nEXT:\r\nST: upnp:rootdevice\r\n\r\n", "http://192.168.1.1:49000/igddesc.xml"},
	{"bare line ends, small letters, no port", "HTTP/1.1 200 OK\nLocation:http://192.168.1.1/gw?x=1\n\n", "http://192.168.1.1/gw?x=1"},
	{"cut after LOCATION", "HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:80/d", "http://192.168.1.1:80/d"},

	{name: "empty"},
	{name: "a search", wire: "M-SEARCH * HTTP/1.1\r\nLOCATION: http://192.168.1.1/\r\n\r\n"},
	{name: "a notice", wire: "NOTIFY * HTTP/1.1\r\nLOCATION: http://192.168.1.1/\r\n\r\n"},
	{name: "an error", wire: "HTTP/1.1 404 Not found\r\nLOCATION: http://192.168.1.1/\r\n\r\n"},
	{name: "no location", wire: "HTTP/1.1 200 OK\r\nST: ssdp:all\r\n\r\n"},
	{name: "location elsewhere", wire: "HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.66/d\r\n\r\n"},
	{name: "location elsewhere, after the user", wire: "HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1@203.0.113.66/d\r\n\r\n"},
	{name: "with a user", wire: "HTTP/1.1 200 OK\r\nLOCATION: http://me@192.168.1.1/d\r\n\r\n"},
	{name: "by name", wire: "HTTP/1.1 200 OK\r\nLOCATION: http://router.example/d\r\n\r\n"},
	{name: "another scheme", wire: "HTTP/1.1 200 OK\r\nLOCATION: file://192.168.1.1/etc/passwd\r\n\r\n"},
	{name: "without host", wire: "HTTP/1.1 200 OK\r\nLOCATION: /rootDesc.xml\r\n\r\n"},
	{name: "with control characters", wire: "HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1/\x00\x01\r\n\r\n"},
	{name: "too long", wire: "HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1/" + strings.Repeat("a", upnpLongestURL) + "\r\n\r\n"},
	{name: "first elsewhere, then here", wire: "HTTP/1.1 200 OK\r\nLOCATION: http://1.2.3.4/\r\nLOCATION: http://192.168.1.1/\r\n\r\n"},
}

func TestSSDPAnswers(t *testing.T) {
	for _, tt := range ssdpAnswers {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseSSDP([]byte(tt.wire), router1)
			if got != tt.want || ok != (tt.want != "") {
				t.Fatalf("got %q, %t; want %q", got, ok, tt.want)
			}
		})
	}
}

// device is a description around some elements.
func device(inner string) string {
	return "<?xml version=\"1.0\"?>\n<root xmlns=\"urn:schemas-upnp-org:device-1-0\"><specVersion><major>1</major><minor>0</minor></specVersion>" +
		inner + "</root>\n"
}

func service(kind, control string) string {
	return "<service><serviceType>" + kind + "</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><controlURL>" + control +
		"</controlURL><eventSubURL>/evt/IPConn</eventSubURL><SCPDURL>/WANIPCn.xml</SCPDURL></service>"
}

const deviceMiniupnpd = `<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0" configId="1337"><specVersion><major>1</major><minor>1</minor></specVersion><device>
<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:2</deviceType><friendlyName>OpenWRT router</friendlyName>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><serviceId>urn:upnp-org:serviceId:L3Forwarding1</serviceId>
<SCPDURL>/L3F.xml</SCPDURL><controlURL>/ctl/L3F</controlURL><eventSubURL>/evt/L3F</eventSubURL></service></serviceList>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:2</deviceType>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType><controlURL>/ctl/CmnIfCfg</controlURL></service></serviceList>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:2</deviceType><friendlyName>WANConnectionDevice</friendlyName>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:2</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<SCPDURL>/WANIPCn.xml</SCPDURL><controlURL>/ctl/IPConn</controlURL><eventSubURL>/evt/IPConn</eventSubURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPv6FirewallControl:1</serviceType><controlURL>/ctl/IP6FCtl</controlURL></service></serviceList>
</device></deviceList></device></deviceList><presentationURL>http://192.168.1.1/</presentationURL></device></root>`

// devices are descriptions that came from http://192.168.1.1:5000/d/root.xml.
var devices = []struct {
	name, wire string
	want       []upnpService
}{
	{"miniupnpd", deviceMiniupnpd, []upnpService{{"http://192.168.1.1:5000/ctl/IPConn", kindIP2}}},
	{"fritz.box with URLBase", device("<URLBase>http://192.168.1.1:49000</URLBase><device>" +
		service("urn:schemas-any-com:service:Any:1", "/igdupnp/control/any") + service(kindIP1, "/igdupnp/control/WANIPConn1") + "</device>"),
		[]upnpService{{"http://192.168.1.1:49000/igdupnp/control/WANIPConn1", kindIP1}}},
	{"URLBase by name", device("<URLBase>http://fritz.box:49000/</URLBase>" + service(kindIP1, "upnp/control")),
		[]upnpService{{"http://192.168.1.1:49000/upnp/control", kindIP1}}},
	{"URLBase last and empty", device(service(kindIP1, "/c") + "<URLBase></URLBase>"), []upnpService{{"http://192.168.1.1:5000/c", kindIP1}}},
	{"PPP", device(service(kindPPP, "/ctl/PPPConn")), []upnpService{{"http://192.168.1.1:5000/ctl/PPPConn", kindPPP}}},
	{"two uplinks", device(service(kindPPP, "/ppp") + service(kindIP1, "/ip")),
		[]upnpService{{"http://192.168.1.1:5000/ppp", kindPPP}, {"http://192.168.1.1:5000/ip", kindIP1}}},
	{"relative", device(service(kindIP1, "ctl?a=1&amp;b=2")), []upnpService{{"http://192.168.1.1:5000/d/ctl?a=1&b=2", kindIP1}}},
	{"absolute", device(service(kindIP1, "http://192.168.1.1:1780/control")), []upnpService{{"http://192.168.1.1:1780/control", kindIP1}}},
	{"absolute by name, no port", device(service(kindIP1, "http://router.lan/control")), []upnpService{{"http://192.168.1.1:80/control", kindIP1}}},
	{"prefixes, attributes, comments, CDATA and space",
		"<r:root><!-- <service> --><r:service a='>' b=\"</service>\">\n<r:serviceType >\n " + kindIP1 + "\n</r:serviceType><x/><r:controlURL><![CDATA[/c]]></r:controlURL></r:service></r:root>",
		[]upnpService{{"http://192.168.1.1:5000/c", kindIP1}}},
	{"more than anybody has", device(strings.Repeat(service(kindIP1, "/c"), 50)),
		slices.Repeat([]upnpService{{"http://192.168.1.1:5000/c", kindIP1}}, upnpMostServices)},

	{name: "empty"},
	{name: "no XML", wire: "404 <not found"},
	{name: "a web page", wire: "<!DOCTYPE html><html><body>Router</body></html>"},
	{name: "a document type", wire: "<!DOCTYPE root [<!ENTITY a \"b\">]>" + service(kindIP1, "/c")},
	{name: "no service of use", wire: device(service("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/c"))},
	{name: "unknown version", wire: device(service("urn:schemas-upnp-org:service:WANIPConnection:3", "/c"))},
	{name: "short name", wire: device(service("WANIPConnection:1", "/c"))},
	{name: "control elsewhere", wire: device(service(kindIP1, "http://203.0.113.66/c"))},
	{name: "control elsewhere, no scheme", wire: device(service(kindIP1, "//203.0.113.66/c"))},
	{name: "URLBase elsewhere", wire: device("<URLBase>http://203.0.113.66/</URLBase>" + service(kindIP1, "/c"))},
	{name: "control of another scheme", wire: device(service(kindIP1, "https://192.168.1.1/c"))},
	{name: "control at no port", wire: device(service(kindIP1, "http://192.168.1.1:99999/c"))},
	{name: "control too long", wire: device(service(kindIP1, strings.Repeat("/c", upnpLongestURL)))},
	{name: "no control", wire: device("<service><serviceType>" + kindIP1 + "</serviceType></service>")},
	{name: "no type", wire: device("<service><controlURL>/c</controlURL></service>")},
	{name: "tags outside of a service", wire: device("<serviceType>" + kindIP1 + "</serviceType><controlURL>/c</controlURL>")},
	{name: "tags within", wire: device("<service><serviceType>" + kindIP1 + "<b></b></serviceType><controlURL>/<i>c</i></controlURL></service>")},
	{name: "tags of two services", wire: device("<service><serviceType>" + kindIP1 + "</serviceType><service><controlURL>/c</controlURL></service></service>")},
	{name: "tags cross", wire: device("<service><serviceType>" + kindIP1 + "</controlURL><controlURL>/c</serviceType></service>")},
	{name: "cut", wire: deviceMiniupnpd[:strings.Index(deviceMiniupnpd, "/ctl/IPConn")+20]},
	{name: "open for ever", wire: strings.Repeat("<service>", 7000)},
	{name: "an attribute without end", wire: "<root a=\"" + service(kindIP1, "/c")},
}

func TestUPnPDevices(t *testing.T) {
	for _, tt := range devices {
		t.Run(tt.name, func(t *testing.T) {
			got := parseDevice([]byte(tt.wire), "http://192.168.1.1:5000/d/root.xml")
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(upnpService{})); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

func envelope(body string) string {
	return `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" ` +
		`s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>` + body + `</s:Body></s:Envelope>`
}

func fault(code string) string {
	return envelope(`<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>` +
		`<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>` + code + `</errorCode>` +
		`<errorDescription>OnlyPermanentLeasesSupported</errorDescription></UPnPError></detail></s:Fault>`)
}

var soapAnswers = []struct {
	name, wire, action string
	want               upnpAnswer
}{
	{"outer address", envelope(`<u:GetExternalIPAddressResponse xmlns:u="` + kindIP1 + `"><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress></u:GetExternalIPAddressResponse>`),
		"GetExternalIPAddress", upnpAnswer{done: true, external: netip.MustParseAddr("203.0.113.7")}},
	{"no outer address", envelope(`<u:GetExternalIPAddressResponse><NewExternalIPAddress/></u:GetExternalIPAddressResponse>`),
		"GetExternalIPAddress", upnpAnswer{done: true}},
	{"an outer name", envelope(`<u:GetExternalIPAddressResponse><NewExternalIPAddress>me.example</NewExternalIPAddress></u:GetExternalIPAddressResponse>`),
		"GetExternalIPAddress", upnpAnswer{done: true}},
	{"mapped", envelope(`<u:AddPortMappingResponse xmlns:u="` + kindPPP + `"></u:AddPortMappingResponse>`), "AddPortMapping", upnpAnswer{done: true}},
	{"mapped, in short", envelope(`<m:AddPortMappingResponse/>`), "AddPortMapping", upnpAnswer{done: true}},
	{"permanent only", fault("725"), "AddPortMapping", upnpAnswer{code: 725}},
	{"conflict, in space", fault(" 718\n"), "AddPortMapping", upnpAnswer{code: 718}},
	{"a fault that says it is done", fault("718") + "<AddPortMappingResponse/>", "AddPortMapping", upnpAnswer{code: 718}},
	{"a fault without code", envelope("<s:Fault/><AddPortMappingResponse/>"), "AddPortMapping", upnpAnswer{}},
	{"a code that is no number", fault("many"), "AddPortMapping", upnpAnswer{}},
	{"the answer to something else", envelope(`<u:DeletePortMappingResponse/>`), "AddPortMapping", upnpAnswer{}},
	{"empty", "", "AddPortMapping", upnpAnswer{}},
	{"address in an element within", envelope(`<u:GetExternalIPAddressResponse><NewExternalIPAddress>203.0.113.7<a>1</a></NewExternalIPAddress></u:GetExternalIPAddressResponse>`),
		"GetExternalIPAddress", upnpAnswer{done: true}},
}

func TestSOAPAnswers(t *testing.T) {
	for _, tt := range soapAnswers {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseSOAP([]byte(tt.wire), tt.action); got != tt.want {
				t.Fatalf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestUPnPRequests(t *testing.T) {
	want := "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\n" +
		"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
	if diff := cmp.Diff(want, string(upnpSearch(ssdpGateway))); diff != "" {
		t.Error(diff)
	}
	want = "<?xml version=\"1.0\"?>\r\n" + envelope(`<u:DeletePortMapping xmlns:u="` + kindIP1 + `"><NewRemoteHost></NewRemoteHost>` +
		`<NewExternalPort>700</NewExternalPort></u:DeletePortMapping>`)[len(`<?xml version="1.0"?>`):] + "\r\n"
	got := upnpCall(kindIP1, "DeletePortMapping", upnpArg{"NewRemoteHost", ""}, upnpArg{"NewExternalPort", "700"})
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

// FuzzUPnP: whatever comes, nobody but the router is spoken to, and what is
// read of it can be put into a request.
func FuzzUPnP(f *testing.F) {
	for _, a := range ssdpAnswers {
		f.Add([]byte(a.wire))
	}
	for _, d := range devices {
		f.Add([]byte(d.wire))
	}
	for _, a := range soapAnswers {
		f.Add([]byte(a.wire))
	}
	const location = "http://192.168.1.1:5000/d/root.xml"
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		if at, ok := parseSSDP(b, router1); ok {
			checkRouterURL(t, at)
			parseDevice(b, at)
		}
		for _, s := range parseDevice(b, location) {
			checkRouterURL(t, s.control)
			if !slices.Contains([]string{kindIP1, kindIP2, kindPPP}, s.kind) {
				t.Fatalf("service %q", s.kind)
			}
		}
		if a := parseSOAP(b, "GetExternalIPAddress"); a.code != 0 && (a.done || a.external.IsValid()) {
			t.Fatalf("refused and granted: %+v", a)
		}
		if !bytes.Equal(before, b) {
			t.Fatal("what was read has changed")
		}
	})
}

func checkRouterURL(t *testing.T, s string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, s, nil)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	if upnpHost(req.URL) != router1 || req.URL.Scheme != "http" {
		t.Fatalf("%q is not at the router", s)
	}
	if err := req.Write(&bytes.Buffer{}); err != nil {
		t.Fatalf("%q: %v", s, err)
	}
}
