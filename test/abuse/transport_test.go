package abuse

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/test/rig"
)

const challengeMethod = bullav1.Broker_Challenge_FullMethodName

// The tests of this row count goroutines, so they run before those that run in parallel.

func TestAbuse_A55_rapid_reset(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	c := r.Client("workload")
	get(t, c, "demo/a", "a")
	before := mark(r)
	idle := runtime.NumGoroutine()
	f := dialFrames(t, r, "stranger")
	if got := f.limits[http2.SettingMaxConcurrentStreams]; got == 0 || got > 256 {
		t.Errorf("a connection may have %d streams; want a limit of at most 256", got)
	}
	most := 0
	for range 40 {
		for range 100 {
			id := f.open(t, challengeMethod)
			f.send(t, id, message(false, 0, nil), true)
			if err := f.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
				t.Fatal(err)
			}
		}
		most = max(most, runtime.NumGoroutine())
		get(t, c, "demo/a", "a") // nobody else is harmed meanwhile
	}
	if most > idle+400 {
		t.Errorf("%d goroutines under the flood, %d before it", most, idle)
	}
	for _, e := range after(r, before) {
		if strings.Contains(e.Subject, "stranger") {
			t.Errorf("the flood made a %s", e.Body.EventType())
		}
	}
	// The connection was not even ended: what was reset left nothing behind that would count against it.
	id := f.open(t, challengeMethod)
	f.send(t, id, message(false, 0, nil), true)
	if got := f.answer(t, id); got != "status 0" {
		t.Errorf("a call after the flood: %s", got)
	}
}

// 600 calls begin and never go on; the client's window for answers is shut.
func TestAbuse_A55_calls_that_stand_still(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	c := r.Client("workload")
	get(t, c, "demo/a", "a")
	idle := runtime.NumGoroutine()
	for name, begin := range map[string]func(f *frames) uint32{
		"no message": func(f *frames) uint32 { return f.open(t, challengeMethod) },
		"half a message": func(f *frames) uint32 {
			id := f.open(t, challengeMethod)
			f.send(t, id, message(false, 1000, []byte{1}), false)
			return id
		},
		"the answer is not read": func(f *frames) uint32 {
			id := f.open(t, challengeMethod)
			f.send(t, id, message(false, 0, nil), true)
			return id
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := dialFrames(t, r, "stranger", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			const calls = 600
			may := int(f.limits[http2.SettingMaxConcurrentStreams])
			if may == 0 || may > 256 {
				t.Fatalf("a connection may have %d calls under way; want a limit of at most 256", may)
			}
			last := uint32(0)
			for range calls {
				last = begin(f)
			}
			// Refusals come in order, so that of the last call is the last.
			if got := f.answer(t, last); got != http2.ErrCodeRefusedStream.String() {
				t.Errorf("call %d: %s; want that it is refused", calls, got)
			}
			refused := 0
			for _, how := range f.ended {
				if how == http2.ErrCodeRefusedStream.String() {
					refused++
				}
			}
			if refused != calls-may {
				t.Errorf("%d of %d calls were refused; %d may stand still", refused, calls, may)
			}
			if now := runtime.NumGoroutine(); now > idle+400 {
				t.Errorf("%d goroutines, %d before", now, idle)
			}
			get(t, c, "demo/a", "a")
			_ = f.conn.Close()
			eventually(t, "what stood still is gone", func() bool { return runtime.NumGoroutine() <= idle+100 })
		})
	}
}

// One principal sends the beginning of messages over many connections, and never their end. What is waiting for the
// rest is bounded over all of them; others are unharmed, and what is given up makes room.
func TestAbuse_A55_messages_that_never_end(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	const bound, each = 512, 120
	half := message(false, 1<<20, make([]byte, 16_000))
	var conns []*frames
	stand := func() (last *frames, refused int) {
		f := dialFrames(t, r, "stranger")
		conns = append(conns, f)
		for range each {
			f.send(t, f.open(t, challengeMethod), half, false)
		}
		id := f.open(t, challengeMethod, "grpc-timeout", "0n") // answered at once, after all those before it
		f.answer(t, id)
		for stream, how := range f.ended {
			if how == "status 8" && stream != id {
				refused++
			}
		}
		return f, refused
	}
	refused := 0
	for range 6 {
		_, n := stand()
		refused += n
	}
	if refused != 6*each-bound {
		t.Errorf("%d of %d calls were refused; want that %d stand", refused, 6*each, bound)
	}
	get(t, r.Client("workload"), "demo/a", "a")
	for _, f := range conns {
		_ = f.conn.Close()
	}
	eventually(t, "there is room again", func() bool {
		f := dialFrames(t, r, "stranger")
		defer f.conn.Close()
		id := f.open(t, challengeMethod)
		f.send(t, id, message(false, 0, nil), true)
		return f.answer(t, id) == "status 0"
	})
}

func TestAbuse_A55_messages(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	f := dialFrames(t, r, "stranger")
	var bomb bytes.Buffer
	zip := gzip.NewWriter(&bomb)
	for range 64 {
		if _, err := zip.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	packed := bomb.Bytes()
	if len(packed) > 65000 {
		packed = packed[:65000] // its beginning alone would be 60 MiB
	}
	for _, c := range []struct {
		what    string
		headers []string
		message []byte
		want    string
	}{
		{"good order", nil, message(false, 0, nil), "status 0"},
		{"a compressed bomb", []string{"grpc-encoding", "gzip"}, message(true, len(packed), packed[:min(len(packed), 16000)]), "status 12"},
		{"a message that says to be long", nil, message(false, 9<<20, []byte("x")), "status 8"},
		{"a message that says to be longest", nil, message(false, 1<<32-1, []byte("x")), "status 8"},
		{"compressed without a word", nil, message(true, 4, []byte("abcd")), "status 13"},
		{"no protobuf", nil, message(false, 3, []byte{0xff, 0xff, 0xff}), "status 13"},
	} {
		id := f.open(t, challengeMethod, c.headers...)
		f.send(t, id, c.message, false) // the rest is never sent
		if c.want == "status 0" || c.want == "status 13" {
			f.send(t, id, nil, true)
		}
		if got := f.answer(t, id); got != c.want {
			t.Errorf("%s: %s; want %s", c.what, got, c.want)
		}
	}
	get(t, r.Client("workload"), "demo/a", "a")
}

func TestAbuse_A55_huge_metadata(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	t.Run("headers that are too long", func(t *testing.T) {
		f := dialFrames(t, r, "stranger")
		if got := f.limits[http2.SettingMaxHeaderListSize]; got == 0 || got > 32<<10 {
			t.Errorf("a header list may have %d bytes; want a limit of at most 32 KiB", got)
		}
		fits := f.open(t, challengeMethod, "x-a", strings.Repeat("a", 4000))
		f.send(t, fits, message(false, 0, nil), true)
		if got := f.answer(t, fits); got != "status 0" {
			t.Errorf("4,000 bytes: %s", got)
		}
		// Four frames of one header list.
		id, block := f.next, f.block(challengeMethod, "x-a", strings.Repeat("~", 60_000))
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:16000]}); err != nil {
			t.Fatal(err)
		}
		for rest := block[16000:]; len(rest) > 0; {
			n := min(16000, len(rest))
			if f.WriteContinuation(id, n == len(rest), rest[:n]) != nil {
				break // the connection was ended meanwhile
			}
			rest = rest[n:]
		}
		ended := f.end(id)
		if ended == "" || ended == "status 0" {
			t.Errorf("60,000 bytes: %q; want a refusal", ended)
		}
	})
	t.Run("headers without an end", func(t *testing.T) {
		f := dialFrames(t, r, "stranger")
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.block(challengeMethod)}); err != nil {
			t.Fatal(err)
		}
		part := f.block(challengeMethod, "x-a", strings.Repeat("~", 16_000))
		sent, err := 0, error(nil)
		for sent < 64<<20 && err == nil {
			err = f.WriteContinuation(1, false, part[:16000])
			sent += 16000
		}
		if err == nil {
			t.Errorf("%d MiB of headers were taken, and more would be", sent>>20)
		}
	})
	t.Run("pings", func(t *testing.T) {
		f := dialFrames(t, r, "stranger")
		var err error
		for range 200 {
			if err = f.WritePing(false, [8]byte{1}); err != nil {
				break
			}
		}
		for err == nil && f.goAway == "" {
			err = f.one()
		}
		if f.goAway != http2.ErrCodeEnhanceYourCalm.String() {
			t.Errorf("200 pings: GOAWAY %q, %v", f.goAway, err)
		}
	})
	get(t, r.Client("workload"), "demo/a", "a")
}

// end reads until a stream or the connection ends and says how.
func (f *frames) end(id uint32) string {
	for f.ended[id] == "" && f.goAway == "" {
		if err := f.one(); err != nil {
			return err.Error()
		}
	}
	return f.ended[id] + f.goAway
}

// mute is a connection on which nothing is heard: a TLS client on it says hello and waits for ever.
type mute struct {
	net.Conn
	closed <-chan struct{}
}

func (m mute) Read([]byte) (int, error) { <-m.closed; return 0, io.EOF }

// Strangers connect, more of them than there are handshakes at once, and do not get on with theirs.
func TestAbuse_A55_handshakes_that_stand_still(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	const strangers = 60
	hello := make(chan struct{})
	defer close(hello)
	for name, begin := range map[string]func(conn net.Conn){
		"they say nothing": func(net.Conn) {},
		"half a record":    func(conn net.Conn) { _, _ = conn.Write([]byte{22, 3, 1, 2, 0, 1, 0}) },
		"hello, and no more": func(conn net.Conn) {
			go func() { _ = tls.Client(mute{conn, hello}, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
		},
		"a byte, and no more": func(conn net.Conn) { _, _ = conn.Write([]byte{22}) },
	} {
		t.Run(name, func(t *testing.T) {
			for range strangers {
				conn, err := net.Dial("tcp", r.Addr())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				begin(conn)
			}
			// Those before are given up after 10 s; this has to be sooner.
			ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
			defer cancel()
			s, err := r.Client("workload", func(c *client.Config) { c.ConnectTimeout = 5 * time.Second }).Get(ctx, "demo/a")
			if err != nil {
				t.Fatalf("with %d strangers in front: %v", strangers, err)
			}
			s.Close()
		})
	}
}

// What is open at once is bounded before TLS, over all and for one address.
func TestAbuse_A55_connections(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := broker.Limit(inner, 5, 3)
	accepted := make(chan net.Conn, 16)
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	})
	defer done.Wait()
	defer l.Close()
	dial := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.DialContext(t.Context(), "tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	refused := func(what string, c net.Conn) {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("%s: %v; want that it is closed", what, err)
		}
	}
	var first net.Conn
	for range 3 {
		dial("127.0.0.1")
		c := <-accepted
		if first == nil {
			first = c
		}
	}
	refused("a fourth from one address", dial("127.0.0.1"))
	for range 2 {
		dial("127.0.0.2")
		<-accepted
	}
	refused("a sixth", dial("127.0.0.3"))
	_ = first.Close()
	_ = first.Close() // the slot comes back once
	dial("127.0.0.3")
	<-accepted
	refused("a sixth again", dial("127.0.0.4"))
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}
