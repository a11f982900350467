package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// headerTime is how long a proxy may take for its header, from the connection on, and maxPending how many may be
	// at it at once. What comes on top is closed.
	headerTime = 3 * time.Second
	maxPending = 1024
)

// ParseProxies reads the CIDR ranges of proxies: in canonical form, and none that everybody is in.
func ParseProxies(ranges []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	var faults []error
	for _, text := range ranges {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil || p.Masked() != p || p.Addr().Is4In6():
			faults = append(faults, fmt.Errorf("%q is not a CIDR range in canonical form, such as 10.0.0.7/32", text))
		case p.Bits() == 0:
			faults = append(faults, fmt.Errorf("%q would believe everybody: name your proxies", text))
		default:
			out = append(out, p)
		}
	}
	return out, errors.Join(faults...)
}

// Addr is where a connection comes from, as a proxy announced it.
type Addr struct {
	net.TCPAddr
	Via netip.AddrPort // the proxy's own address
}

// Network implements net.Addr.
func (a *Addr) Network() string { return a.TCPAddr.Network() }

// String implements net.Addr: the announced address and port.
func (a *Addr) String() string { return a.TCPAddr.String() }

// conn is a connection whose header was read.
type conn struct {
	net.Conn
	from net.Addr
}

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.from }

// Listener accepts connections, and reads the header of those that come from a proxy.
type Listener struct {
	net.Listener
	proxies []netip.Prefix
	log     *slog.Logger

	ready   chan accepted
	pending chan struct{}
	done    chan struct{}
	once    sync.Once
	tasks   sync.WaitGroup
}

type accepted struct {
	conn net.Conn
	err  error
}

// Listen wraps a listener. Close ends what waits for a header.
func Listen(l net.Listener, proxies []netip.Prefix, log *slog.Logger) *Listener {
	p := &Listener{
		Listener: l, proxies: proxies, log: log,
		ready: make(chan accepted), pending: make(chan struct{}, maxPending), done: make(chan struct{}),
	}
	p.tasks.Go(p.run)
	return p
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case a := <-l.ready:
		return a.conn, a.err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { close(l.done) })
	l.tasks.Wait()
	return err
}

// run accepts, and never waits for a peer.
func (l *Listener) run() {
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || !l.believes(c.RemoteAddr()) {
			if !l.hand(accepted{c, err}) {
				return
			}
			continue
		}
		select {
		case l.pending <- struct{}{}:
			l.tasks.Go(func() {
				defer func() { <-l.pending }()
				l.greet(c)
			})
		default:
			_ = c.Close()
		}
	}
}

// hand gives the outcome to whoever accepts, unless the listener is closed.
func (l *Listener) hand(a accepted) bool {
	select {
	case l.ready <- a:
		return true
	case <-l.done:
		if a.conn != nil {
			_ = a.conn.Close()
		}
		return false
	}
}

// greet reads a proxy's header.
func (l *Listener) greet(c net.Conn) {
	if err := c.SetReadDeadline(time.Now().Add(headerTime)); err != nil {
		_ = c.Close()
		return
	}
	stop := make(chan struct{})
	defer close(stop)
	l.tasks.Go(func() { // a listener that is closed waits for no header
		select {
		case <-l.done:
			_ = c.SetReadDeadline(time.Unix(1, 0))
		case <-stop:
		}
	})
	h, err := Read(c)
	if err == nil {
		err = c.SetReadDeadline(time.Time{})
	}
	if err != nil {
		level := slog.LevelWarn
		if errors.Is(err, io.EOF) {
			level = slog.LevelDebug // it only looked whether somebody listens
		}
		l.log.Log(context.Background(), level, "connection of a proxy closed", "proxy_addr", c.RemoteAddr().String(), "error", err)
		_ = c.Close()
		return
	}
	from := c.RemoteAddr()
	if !h.Local {
		source := h.Source.Addr().Unmap()
		via := addrPort(c.RemoteAddr())
		from = &Addr{net.TCPAddr{IP: source.AsSlice(), Port: int(h.Source.Port())}, via}
	}
	l.hand(accepted{conn: &conn{c, from}})
}

// believes says whether a peer is a configured proxy.
func (l *Listener) believes(a net.Addr) bool {
	peer := addrPort(a).Addr()
	for _, p := range l.proxies {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}

// addrPort is a TCP address without what a dual-stack socket puts around it; the zero value, which no range
// contains, for any other.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
