package abuse

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/test/rig"
)

// A50: a policy that no event activated decides nothing, however well it fits its row.
func TestAbuse_A50_a_policy_of_the_databases_writer(t *testing.T) {
	t.Parallel()
	e := newEdited(t)
	archive := e.Archive(func(files map[string]string) {
		files["data/grants.yaml"] += rig.ID("second").String() + ":\n  read: {\"*\": true}\n  devices: [\"*\"]\n"
	})
	digest := sha256.Sum256(archive)
	e.exec(`INSERT INTO blobs (key, digest, data) VALUES (?, ?, ?)`, "revision/"+hex.EncodeToString(digest[:]), digest[:], archive)
	e.exec(`UPDATE states SET value = CAST(json_set(CAST(value AS TEXT), '$.digest', ?) AS BLOB) WHERE kind = 'revision' AND key = 'active'`, hex.EncodeToString(digest[:]))
	e.found(`revision "active"`)
	s, err := server.Open(t.Context(), e.Config, server.Options{DevelopmentKey: e.Authority.DeviceKeyPublic()})
	if err != nil {
		if !strings.Contains(err.Error(), "no event activated") {
			t.Error(err)
		}
		return
	}
	t.Error("the broker runs on a policy that no event activated")
	cut, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Serve(cut); err != nil {
		t.Error(err)
	}
}

// A50, A53: approvals that nobody gave, or gave to another request, permit nothing.
func TestAbuse_A50_approvals_of_the_databases_writer(t *testing.T) {
	t.Parallel()
	for what, edit := range map[string]func(e *edited, given, wanted string){
		"answers of another round": func(e *edited, given, wanted string) {
			e.exec(`UPDATE states SET value = CAST(json_set(CAST(value AS TEXT), '$.state', 'approved', '$.answers',
				json((SELECT json_extract(CAST(value AS TEXT), '$.answers') FROM states WHERE kind = 'round' AND key = ?))) AS BLOB) WHERE kind = 'round' AND key = ?`, given, wanted)
		},
		"another round": func(e *edited, given, wanted string) {
			e.exec(`UPDATE states SET value = (SELECT CAST(json_set(CAST(a.value AS TEXT), '$.id', b.key,
				'$.payload', json_extract(CAST(b.value AS TEXT), '$.payload'), '$.instance', json_extract(CAST(b.value AS TEXT), '$.instance')) AS BLOB)
				FROM states AS a, states AS b WHERE a.kind = 'round' AND a.key = ?1 AND b.kind = 'round' AND b.key = ?2) WHERE kind = 'round' AND key = ?2`, given, wanted)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := rig.Start(t, rig.Config{})
			r.Put("demo/approved", "approved", "one")
			given, wanted := openApproval(t, r, "demo/approved"), openApproval(t, r, "demo/approved")
			approve(t, r, "custodian-1", given.id)
			r.Stop()
			e := &edited{Rig: r, t: t}
			edit(e, given.id, wanted.id)
			e.found(`round "` + wanted.id)
			r.Run()
			reply, err := wanted.deliver(t, r.RawWith("workload", wanted.w.Key), wanted.id, wanted.body)
			code(t, err, codes.Unavailable, "the ledger can't record now")
			if len(reply.GetEnvelope()) > 0 {
				t.Error("it was delivered on approvals that were not given to it")
			}
		})
	}
}
