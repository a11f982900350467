// Package proxy takes connections that a load balancer passes on, and learns from its PROXY header where they come
// from: version 2, the binary one, of "The PROXY protocol" (HAProxy Technologies,
// https://www.haproxy.org/download/3.1/doc/proxy-protocol.txt, section 2.2).
//
// Only configured proxies are believed. From them a header has to come, at once, before anything else; from anybody
// else not a byte is read here, so a header of theirs meets TLS, which closes the connection. Version 1, the textual
// one, is not spoken: it can't be told apart from what follows it before it is parsed.
//
// The package knows nothing of TLS, and decides nothing about an address.
package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
)

const (
	// maxBlock is the longest that may follow the fixed part of a header, in bytes, and maxTLVs how many extensions
	// there may be in it.
	maxBlock = 1024
	maxTLVs  = 32

	fixed   = 16
	local   = 0x20 // version 2, command LOCAL
	proxied = 0x21 // version 2, command PROXY
	tcp4    = 0x11
	tcp6    = 0x21
	typeCRC = 0x03
)

// signature begins every header.
var signature = []byte("\r\n\r\n\x00\r\nQUIT\n")

// ErrHeader is wrapped by every refusal of a header.
var ErrHeader = errors.New("PROXY header refused")

// Header is what a proxy says about a connection that it passes on.
type Header struct {
	// Local says that the connection is the proxy's own, such as a health check; nothing else is then set.
	Local               bool
	Source, Destination netip.AddrPort // both IPv4, or both IPv6
	TLVs                []TLV
}

// TLV is an extension. None of them changes what is done, but for the checksum (type 0x03), which has to be right.
type TLV struct {
	Type  byte
	Value []byte
}

// Read reads exactly one header, and nothing of what follows it.
func Read(r io.Reader) (Header, error) {
	var head [fixed]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Header{}, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	length := binary.BigEndian.Uint16(head[14:])
	switch {
	case !bytes.Equal(head[:12], signature):
		return Header{}, fmt.Errorf("%w: no header of version 2 came first", ErrHeader)
	case head[12] != local && head[12] != proxied:
		return Header{}, fmt.Errorf("%w: version and command %#02x", ErrHeader, head[12])
	case length > maxBlock:
		return Header{}, fmt.Errorf("%w: %d bytes follow, at most %d are allowed", ErrHeader, length, maxBlock)
	}
	block := make([]byte, length)
	if _, err := io.ReadFull(r, block); err != nil {
		return Header{}, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	if head[12] == local { // the rest has no meaning
		return Header{Local: true}, nil
	}
	h, err := parse(head[13], block)
	if err == nil {
		err = checksum(h, head[:], block)
	}
	if err != nil {
		return Header{}, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	return h, nil
}

// parse reads addresses and extensions, which have to fill the block to its last byte.
func parse(family byte, block []byte) (Header, error) {
	var size int
	switch family {
	case tcp4:
		size = 4
	case tcp6:
		size = 16
	default:
		return Header{}, fmt.Errorf("address family and transport %#02x: only TCP over IPv4 or IPv6 is passed on", family)
	}
	if len(block) < 2*size+4 {
		return Header{}, fmt.Errorf("%d bytes can't hold its addresses", len(block))
	}
	source, _ := netip.AddrFromSlice(block[:size])
	destination, _ := netip.AddrFromSlice(block[size : 2*size])
	ports, rest := block[2*size:], block[2*size+4:]
	h := Header{
		Source:      netip.AddrPortFrom(source, binary.BigEndian.Uint16(ports)),
		Destination: netip.AddrPortFrom(destination, binary.BigEndian.Uint16(ports[2:])),
	}
	if peer := source.Unmap(); peer.IsUnspecified() || peer.IsMulticast() || h.Source.Port() == 0 {
		return Header{}, fmt.Errorf("nothing can come from %s", h.Source)
	}
	for len(rest) > 0 {
		if len(rest) < 3 || len(rest)-3 < int(binary.BigEndian.Uint16(rest[1:])) || len(h.TLVs) == maxTLVs {
			return Header{}, fmt.Errorf("an extension is longer than the header, or there are more than %d", maxTLVs)
		}
		end := 3 + int(binary.BigEndian.Uint16(rest[1:]))
		h.TLVs = append(h.TLVs, TLV{rest[0], rest[3:end:end]})
		rest = rest[end:]
	}
	return h, nil
}

// castagnoli is the polynomial of the checksum; it is never written to.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum judges the extension with the CRC32c over the header, in which its own value counts as zeros.
func checksum(h Header, head, block []byte) error {
	offset, found := len(block), -1
	for i := len(h.TLVs) - 1; i >= 0; i-- {
		offset -= len(h.TLVs[i].Value)
		if h.TLVs[i].Type == typeCRC {
			if found >= 0 || len(h.TLVs[i].Value) != crc32.Size {
				return errors.New("its checksum is there twice, or has not four bytes")
			}
			found = offset
		}
		offset -= 3
	}
	if found < 0 {
		return nil
	}
	sum := crc32.Update(0, castagnoli, head)
	sum = crc32.Update(sum, castagnoli, block[:found])
	sum = crc32.Update(sum, castagnoli, make([]byte, crc32.Size))
	sum = crc32.Update(sum, castagnoli, block[found+crc32.Size:])
	if sum != binary.BigEndian.Uint32(block[found:]) {
		return errors.New("its checksum is not that of its bytes")
	}
	return nil
}

// Append appends the header as a proxy sends it. It checks nothing: Read does.
func (h Header) Append(to []byte) []byte {
	if h.Local {
		return append(append(to, signature...), local, 0, 0, 0)
	}
	family := byte(tcp4)
	if h.Source.Addr().Is6() {
		family = tcp6
	}
	var block []byte
	block = append(block, h.Source.Addr().AsSlice()...)
	block = append(block, h.Destination.Addr().AsSlice()...)
	block = binary.BigEndian.AppendUint16(block, h.Source.Port())
	block = binary.BigEndian.AppendUint16(block, h.Destination.Port())
	for _, t := range h.TLVs {
		block = append(binary.BigEndian.AppendUint16(append(block, t.Type), uint16(len(t.Value))), t.Value...)
	}
	to = append(append(to, signature...), proxied, family)
	return append(binary.BigEndian.AppendUint16(to, uint16(len(block))), block...)
}
