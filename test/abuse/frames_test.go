package abuse

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/bulla-project/bulla/test/rig"
)

// frames is a connection to the broker that speaks HTTP/2 frame by frame.
type frames struct {
	*http2.Framer
	conn    *tls.Conn
	limits  map[http2.SettingID]uint32 // what the server announced
	ended   map[uint32]string          // how streams ended: "status N", or the code of a reset
	goAway  string                     // the code of a GOAWAY
	next    uint32
	encoded bytes.Buffer
	encoder *hpack.Encoder
}

// dialFrames connects as name; settings are the client's.
func dialFrames(t *testing.T, r *rig.Rig, name string, settings ...http2.Setting) *frames {
	t.Helper()
	svid, err := r.Source(name).GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	cfg := r.Showing(svid)
	cfg.NextProtos = []string{"h2"}
	raw, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, cfg)
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute)) // for all that a test does over it, on a busy machine
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := &frames{Framer: http2.NewFramer(conn, conn), conn: conn, limits: map[http2.SettingID]uint32{}, ended: map[uint32]string{}, next: 1}
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.encoder = hpack.NewEncoder(&f.encoded)
	if err := f.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	f.read(t, "the server's settings", func() bool { return len(f.limits) > 0 })
	return f
}

// read takes frames until done, and fails the test when the connection ends before.
func (f *frames) read(t *testing.T, what string, done func() bool) {
	t.Helper()
	for !done() {
		if err := f.one(); err != nil {
			t.Fatalf("%s: %v (streams %v, GOAWAY %q)", what, err, f.ended, f.goAway)
		}
	}
}

// one takes one frame.
func (f *frames) one() error {
	got, err := f.ReadFrame()
	if stream := (http2.StreamError{}); errors.As(err, &stream) {
		return nil
	}
	if err != nil {
		return err
	}
	switch got := got.(type) {
	case *http2.SettingsFrame:
		if got.IsAck() {
			return nil
		}
		_ = got.ForeachSetting(func(s http2.Setting) error { f.limits[s.ID] = s.Val; return nil })
		return f.WriteSettingsAck()
	case *http2.DataFrame:
		if n := uint32(len(got.Data())); n > 0 { // answers that came before a reset use up the connection's window
			return f.WriteWindowUpdate(0, n)
		}
	case *http2.MetaHeadersFrame:
		for _, h := range got.Fields {
			if h.Name == "grpc-status" || h.Name == ":status" && h.Value != "200" {
				f.ended[got.StreamID] = "status " + h.Value
			}
		}
	case *http2.RSTStreamFrame:
		if f.ended[got.StreamID] == "" {
			f.ended[got.StreamID] = got.ErrCode.String()
		}
	case *http2.GoAwayFrame:
		f.goAway = got.ErrCode.String()
	case *http2.PingFrame:
		if !got.IsAck() {
			return f.WritePing(true, got.Data)
		}
	}
	return nil
}

// block is an encoded header list of a call; extra are pairs.
func (f *frames) block(method string, extra ...string) []byte {
	f.encoded.Reset()
	fields := append([]string{":method", "POST", ":scheme", "https", ":path", method, ":authority", "broker", "content-type", "application/grpc", "te", "trailers"}, extra...)
	for i := 0; i < len(fields); i += 2 {
		_ = f.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true}) // into a buffer; never indexed
	}
	return bytes.Clone(f.encoded.Bytes())
}

// open begins a call and returns its stream.
func (f *frames) open(t *testing.T, method string, extra ...string) uint32 {
	t.Helper()
	id := f.next
	f.next += 2
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.block(method, extra...), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	return id
}

// send sends a message on a stream; last ends the client's side.
func (f *frames) send(t *testing.T, id uint32, message []byte, last bool) {
	t.Helper()
	if err := f.WriteData(id, last, message); err != nil {
		t.Fatal(err)
	}
}

// message frames a gRPC message; the length is said, whatever the body has.
func message(compressed bool, length int, body []byte) []byte {
	out := make([]byte, 5, 5+len(body))
	if compressed {
		out[0] = 1
	}
	binary.BigEndian.PutUint32(out[1:], uint32(length))
	return append(out, body...)
}

// answer waits for the end of a stream.
func (f *frames) answer(t *testing.T, id uint32) string {
	t.Helper()
	f.read(t, "stream "+strconv.Itoa(int(id)), func() bool { return f.ended[id] != "" || f.goAway != "" })
	if f.ended[id] == "" {
		return fmt.Sprintf("GOAWAY %s", f.goAway)
	}
	return f.ended[id]
}
