package rig

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/bulla-project/bulla/broker/proxy"
)

// ProxyAddr is from where a rig's proxies connect. What a test dials directly comes from 127.0.0.1.
const ProxyAddr = "127.0.0.2"

// Proxy runs a load balancer in front of the broker that announces source as the place where all its connections
// come from, and returns its address. It connects from ProxyAddr.
func (r *Rig) Proxy(source string) string {
	r.t.Helper()
	return Balance(r.t, ProxyAddr, r.addr, Header(source, r.addr).Append(nil))
}

// Header announces source, for a connection to destination.
func Header(source, destination string) proxy.Header {
	h := proxy.Header{Source: netip.MustParseAddrPort(source), Destination: netip.MustParseAddrPort(destination)}
	if h.Source.Addr().Is6() && h.Destination.Addr().Is4() {
		h.Destination = netip.AddrPortFrom(netip.AddrFrom16(h.Destination.Addr().As16()), h.Destination.Port())
	}
	return h
}

// Balance runs a load balancer until the test ends, and returns its address. What connects to it is passed on to to,
// from the address from, after the header.
func Balance(t testing.TB, from, to string, header []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() { pass(ctx, c, from, to, header) })
		}
	})
	t.Cleanup(func() {
		stop()
		_ = l.Close()
		tasks.Wait()
	})
	return l.Addr().String()
}

// pass carries bytes both ways until one side is done.
func pass(ctx context.Context, c net.Conn, from, to string, header []byte) {
	defer c.Close()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	upstream, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	defer upstream.Close()
	if _, err := upstream.Write(header); err != nil {
		return
	}
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{c, upstream}, {upstream, c}} {
		go func() {
			_, _ = io.Copy(way[0], way[1]) // ends with either connection
			done <- struct{}{}
		}()
	}
	ended := 0
	select {
	case <-done:
		ended++
	case <-ctx.Done():
	}
	_, _ = c.Close(), upstream.Close()
	for ; ended < 2; ended++ {
		<-done
	}
}
