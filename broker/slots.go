package broker

import (
	"net"
	"sync"
)

// connSlots counts open connections.
type connSlots struct {
	total, perAddress int

	mu     sync.Mutex // guards what follows
	open   int
	byHost map[string]int
}

func newConnSlots(total, perAddress int) *connSlots {
	return &connSlots{total: total, perAddress: perAddress, byHost: map[string]int{}}
}

func (s *connSlots) take(host string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open >= s.total || s.byHost[host] >= s.perAddress {
		return false
	}
	s.open++
	s.byHost[host]++
	return true
}

func (s *connSlots) free(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	if s.byHost[host]--; s.byHost[host] == 0 {
		delete(s.byHost, host)
	}
}

// hostOf is the address without the port.
func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

// slotConn gives its slot back once, when it is closed.
type slotConn struct {
	net.Conn
	once sync.Once
	free func()
}

// Close implements net.Conn.
func (c *slotConn) Close() error {
	c.once.Do(c.free)
	return c.Conn.Close()
}
