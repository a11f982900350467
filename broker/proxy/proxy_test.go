package proxy_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/broker/proxy"
)

func header(source, destination string, tlvs ...proxy.TLV) proxy.Header {
	return proxy.Header{Source: netip.MustParseAddrPort(source), Destination: netip.MustParseAddrPort(destination), TLVs: tlvs}
}

// summed is h with the right checksum as its last extension.
func summed(h proxy.Header) []byte {
	h.TLVs = append(h.TLVs, proxy.TLV{Type: 3, Value: make([]byte, 4)})
	out := h.Append(nil)
	binary.BigEndian.PutUint32(out[len(out)-4:], crc32.Checksum(out, crc32.MakeTable(crc32.Castagnoli)))
	return out
}

func TestRead(t *testing.T) {
	t.Parallel()
	for _, want := range []proxy.Header{
		{Local: true},
		header("192.0.2.1:4711", "10.0.0.1:8443"),
		header("[2001:db8::1]:1", "[2001:db8::2]:65535"),
		header("192.0.2.1:4711", "10.0.0.1:8443", proxy.TLV{Type: 0xea, Value: []byte("vpce-1")}, proxy.TLV{Type: 4, Value: []byte{}}),
	} {
		in := bytes.NewReader(append(want.Append(nil), "what follows"...))
		got, err := proxy.Read(in)
		if err != nil {
			t.Errorf("%+v: %v", want, err)
			continue
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
		if rest, _ := io.ReadAll(in); string(rest) != "what follows" {
			t.Errorf("%+v: %q is left", want, rest)
		}
	}
	h := header("192.0.2.1:4711", "10.0.0.1:8443", proxy.TLV{Type: 5, Value: []byte("id")})
	if _, err := proxy.Read(bytes.NewReader(summed(h))); err != nil {
		t.Errorf("a checksum that is right: %v", err)
	}
	// A health check may say anything after its command.
	if got, err := proxy.Read(bytes.NewReader(patch(h.Append(nil), 12, 0x20))); err != nil || !got.Local {
		t.Errorf("LOCAL with addresses: %+v, %v", got, err)
	}
}

func patch(b []byte, at int, v byte) []byte {
	b = bytes.Clone(b)
	b[at] = v
	return b
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	good := header("192.0.2.1:4711", "10.0.0.1:8443", proxy.TLV{Type: 5, Value: []byte("id")})
	raw, sum := good.Append(nil), summed(good)
	many := good
	for range 33 {
		many.TLVs = append(many.TLVs, proxy.TLV{Type: 1})
	}
	long := good
	long.TLVs = []proxy.TLV{{Type: 5, Value: make([]byte, 1024)}}
	twice := good
	twice.TLVs = []proxy.TLV{{Type: 3, Value: make([]byte, 4)}, {Type: 3, Value: make([]byte, 4)}}
	for name, b := range map[string][]byte{
		"nothing":               nil,
		"version 1":             []byte("PROXY TCP4 192.0.2.1 10.0.0.1 4711 8443\r\n"),
		"TLS":                   append([]byte{0x16, 3, 1}, make([]byte, 600)...),
		"version 3":             patch(raw, 12, 0x31),
		"unknown command":       patch(raw, 12, 0x22),
		"no family":             patch(raw, 13, 0x00),
		"UDP":                   patch(raw, 13, 0x12),
		"a Unix socket":         patch(raw, 13, 0x31),
		"IPv6 in IPv4's length": patch(raw, 13, 0x21),
		"longer than it says":   patch(raw, 15, raw[15]-1), // so that an extension is cut
		"shorter than it says":  patch(raw, 15, raw[15]+1),
		"no room for addresses": patch(raw, 15, 11),
		"a length of 64 KiB":    patch(patch(raw, 14, 0xff), 15, 0xff),
		"too long":              long.Append(nil),
		"too many extensions":   many.Append(nil),
		"a cut extension":       patch(raw, 30, 0xff),
		"a wrong checksum":      patch(sum, 17, sum[17]^1),
		"two checksums":         twice.Append(nil),
		"a checksum of 2 bytes": header("192.0.2.1:4711", "10.0.0.1:8443", proxy.TLV{Type: 3, Value: []byte{0, 0}}).Append(nil),
		"from nowhere":          header("0.0.0.0:4711", "10.0.0.1:8443").Append(nil),
		"from nowhere, IPv6":    header("[::]:4711", "[::1]:8443").Append(nil),
		"from many":             header("224.0.0.1:4711", "10.0.0.1:8443").Append(nil),
		"from port 0":           header("192.0.2.1:0", "10.0.0.1:8443").Append(nil),
		"LOCAL of 64 KiB":       patch(patch(proxy.Header{Local: true}.Append(nil), 14, 0xff), 15, 0xff),
	} {
		if h, err := proxy.Read(bytes.NewReader(b)); !errors.Is(err, proxy.ErrHeader) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(proxy.Header{Local: true}.Append(nil))
	f.Add(header("192.0.2.1:4711", "10.0.0.1:8443").Append(nil))
	f.Add(header("[::ffff:192.0.2.1]:4711", "[::1]:8443", proxy.TLV{Type: 5, Value: []byte("id")}).Append(nil))
	f.Add(summed(header("192.0.2.1:4711", "10.0.0.1:8443", proxy.TLV{Type: 5, Value: []byte("id")})))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		h, err := proxy.Read(in)
		if err != nil {
			if !errors.Is(err, proxy.ErrHeader) || h.Source.IsValid() {
				t.Fatalf("%+v, %v", h, err)
			}
			return
		}
		if read := len(b) - in.Len(); !h.Local && !bytes.Equal(h.Append(nil), b[:read]) {
			t.Fatalf("%x was read as %+v, which is %x", b[:read], h, h.Append(nil))
		}
	})
}

func TestParseProxies(t *testing.T) {
	t.Parallel()
	got, err := proxy.ParseProxies([]string{"10.0.0.7/32", "2001:db8::/64"})
	if err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	for _, bad := range []string{"10.0.0.7", "10.0.0.7/8", "0.0.0.0/0", "::/0", "::ffff:10.0.0.0/104", "lb.example.org", ""} {
		if _, err := proxy.ParseProxies([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// from dials l from a loopback address of the test's choice.
func from(t *testing.T, l net.Listener, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func listen(t *testing.T) *proxy.Listener {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := proxy.Listen(inner, []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestListener(t *testing.T) {
	t.Parallel()
	l := listen(t)
	accept := func() (net.Conn, string) {
		t.Helper()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		text := make([]byte, 5)
		if _, err := io.ReadFull(c, text); err != nil {
			t.Fatal(err)
		}
		return c, string(text)
	}
	write := func(c net.Conn, b []byte) {
		t.Helper()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	silent := from(t, l, "127.0.0.2") // keeps nobody waiting
	through := from(t, l, "127.0.0.2")
	write(through, append(header("[::ffff:192.0.2.1]:4711", "[::1]:8443").Append(nil), "hello"...))
	c, text := accept()
	a, ok := c.RemoteAddr().(*proxy.Addr)
	if !ok || a.String() != "192.0.2.1:4711" || a.Network() != "tcp" || a.Via.String() != through.LocalAddr().String() || text != "hello" {
		t.Errorf("through a proxy: %v, %q", c.RemoteAddr(), text)
	}
	direct := from(t, l, "127.0.0.1")
	write(direct, []byte("hello"))
	if c, _ := accept(); c.RemoteAddr().String() != direct.LocalAddr().String() {
		t.Errorf("direct: %v", c.RemoteAddr())
	}
	check := from(t, l, "127.0.0.2")
	write(check, append(proxy.Header{Local: true}.Append(nil), "hello"...))
	if c, _ := accept(); c.RemoteAddr().String() != check.LocalAddr().String() {
		t.Errorf("health check: %v", c.RemoteAddr())
	}
	// From anybody else a header is what it is: bytes that are not understood.
	forged := from(t, l, "127.0.0.1")
	write(forged, header("192.0.2.1:4711", "10.0.0.1:8443").Append(nil))
	if c, text := accept(); c.RemoteAddr().String() != forged.LocalAddr().String() || text != "\r\n\r\n\x00" {
		t.Errorf("a header of somebody else: %v, %q", c.RemoteAddr(), text)
	}
	// A proxy that sends none is closed.
	plain := from(t, l, "127.0.0.2")
	write(plain, []byte("hello, I am no header"))
	if n, err := plain.Read(make([]byte, 1)); err == nil {
		t.Errorf("without a header: %d bytes", n)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("a connection without a header lives on")
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
}

// TestHeaderTime: a proxy that says nothing is closed after three seconds, by itself.
func TestHeaderTime(t *testing.T) {
	t.Parallel()
	l := listen(t)
	silent := from(t, l, "127.0.0.2")
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("it got an answer")
	}
}
