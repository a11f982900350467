package sevsnp

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-sev-guest/abi"
)

// certTable writes VCEK and ASK as a host does, with a zero entry and zeros to the end of the page.
func certTable(certs [][]byte) []byte {
	out, blobs := []byte{}, []byte{}
	for i, guid := range []string{abi.VcekGUID, abi.AskGUID} {
		id, err := hex.DecodeString(strings.ReplaceAll(guid, "-", ""))
		if err != nil {
			panic(err)
		}
		out = append(out, id...)
		out = binary.LittleEndian.AppendUint32(out, uint32(3*abi.CertTableEntrySize+len(blobs)))
		out = binary.LittleEndian.AppendUint32(out, uint32(len(certs[i])))
		blobs = append(blobs, certs[i]...)
	}
	return append(append(out, make([]byte, abi.CertTableEntrySize)...), blobs...)
}

func FuzzTable(f *testing.F) {
	f.Add(certTable([][]byte{{1, 2, 3}, {4}}))
	f.Add(make([]byte, 48))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		found, err := table(b)
		if err != nil && found != nil {
			t.Error("certificates besides an error")
		}
		for _, der := range found {
			if len(der) == 0 || len(der) > len(b) {
				t.Errorf("a certificate of %d bytes in a table of %d", len(der), len(b))
			}
		}
	})
}
