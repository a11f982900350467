package abuse

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/test/rig"
)

// modelled is what the model knows of one gated session.
type modelled struct {
	*gatedSession
	uses    uint32
	spent   map[uint32]modelledUse
	expires time.Time
	ended   bool // revoked, or of another life of the broker
}

type modelledUse struct {
	id       string
	share    []byte
	at       time.Time
	revision int
}

// world is the broker beside its model.
type world struct {
	t        *testing.T
	r        *rig.Rig
	w        *rig.Raw
	security *client.Client
	random   *rand.Rand
	ahead    *atomic.Int64
	sessions []*modelled
	granted  bool // does the active revision grant anything
	revision int
}

func (x *world) now() time.Time { return time.Now().Add(time.Duration(x.ahead.Load())) }

// TestGatedSessionsAgainstAModel does random things with gated sessions (deliver, use, retry, revoke, let time pass,
// restart, change the policy) and compares each answer with that of a model that fits on a page. A million steps with
// BULLA_TEST_LONG=1.
func TestGatedSessionsAgainstAModel(t *testing.T) {
	t.Parallel()
	worlds, steps := 1, 1500
	if os.Getenv("BULLA_TEST_LONG") == "1" {
		worlds, steps = 8, 125_000
	}
	for range worlds {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			walk(t, seed, steps)
		})
	}
}

func walk(t *testing.T, seed uint64, steps int) {
	x := &world{t: t, random: rand.New(rand.NewPCG(seed, 1)), ahead: new(atomic.Int64), granted: true}
	x.r = rig.Start(t, rig.Config{SVIDTTL: 1000 * time.Hour, Now: x.now})
	x.r.Put("demo/gated", "standard", "s3cret")
	x.w, x.security = x.r.Raw("workload"), x.r.Client("security")
	connected := time.Now()
	for step := range steps {
		if time.Since(connected) > time.Minute { // the broker ends connections of three minutes
			x.w, connected = x.r.RawWith("workload", x.w.Key), time.Now()
		}
		var name string
		switch n := x.random.IntN(2000); {
		case n < 200:
			name = x.deliver()
		case n < 1500:
			name = x.use()
		case n < 1830:
			name = x.retry()
		case n < 1890:
			name = x.revoke()
		case n < 1994:
			name = "time"
			x.ahead.Add(int64(time.Duration(1+x.random.IntN(120)) * time.Second))
			if x.w.Bind() != nil {
				t.Error("the instance key can't be bound again")
			}
		case n < 1997:
			name = x.restart()
		default:
			name = x.push()
		}
		if t.Failed() {
			t.Fatalf("step %d (%s) of seed %d", step, name, seed)
		}
		x.ahead.Add(int64(200 * time.Millisecond)) // refused calls have an allowance
		if len(x.sessions) > 12 {
			x.sessions = x.sessions[1:]
		}
	}
	x.r.Check()
}

func (x *world) deliver() string {
	uses := uint32(1 + x.random.IntN(5))
	if !x.granted {
		x.w.Challenge(nil)
		ask, _ := x.w.Ask("demo/gated")
		_, err := x.w.Broker.Deliver(x.t.Context(), x.w.Sign(bullav1.Broker_Deliver_FullMethodName, ask))
		wantCode(x.t, "deliver without a grant", err, codes.PermissionDenied, "policy")
		return "deliver without a grant"
	}
	s := deliverGated(x.t, x.w, "demo/gated", "s3cret", uses)
	x.sessions = append(x.sessions, &modelled{gatedSession: s, uses: uses, spent: map[uint32]modelledUse{}, expires: s.reply.GetExpiresAt().AsTime()})
	return "deliver"
}

func (x *world) pick() *modelled {
	if len(x.sessions) == 0 {
		return nil
	}
	return x.sessions[x.random.IntN(len(x.sessions))]
}

// over says whether nothing can be got from the session any more, at a time near now: within a second of its end the
// model does not know, and asks for nothing.
func (x *world) over(s *modelled) (over, sure bool) {
	left := s.expires.Sub(x.now())
	return s.ended || left <= 0, s.ended || left.Abs() > 2*time.Second
}

func (x *world) use() string {
	s := x.pick()
	if s == nil {
		return "use of nothing"
	}
	over, sure := x.over(s)
	if !sure {
		return "use at the very end"
	}
	number := uint32(1 + x.random.IntN(int(s.uses)))
	_, gone := s.spent[number]
	id := requestID()
	reply, err := s.use(x.t, x.w, id, number)
	what := fmt.Sprintf("use %d of %d (%d spent, over %t, granted %t)", number, s.uses, len(s.spent), over, x.granted)
	switch {
	case over || len(s.spent) == int(s.uses) && x.granted:
		wantCode(x.t, what, err, codes.FailedPrecondition, "session")
	case !x.granted && !gone:
		wantCode(x.t, what, err, codes.PermissionDenied, "policy")
	case gone:
		if c := status.Code(err); c != codes.FailedPrecondition && (x.granted || c != codes.PermissionDenied) {
			x.t.Errorf("%s: %v", what, err)
		}
	case err != nil:
		x.t.Errorf("%s: %v", what, err)
	default:
		s.spent[number] = modelledUse{id, reply.GetShare(), x.now(), x.revision}
		if err := s.opens(number, reply); err != nil || int(reply.GetUsesLeft()) != int(s.uses)-len(s.spent) {
			x.t.Errorf("%s: %v, %d left", what, err, reply.GetUsesLeft())
		}
	}
	return what
}

// retry sends a use that was answered once more.
func (x *world) retry() string {
	s := x.pick()
	if s == nil || len(s.spent) == 0 {
		return "retry of nothing"
	}
	over, sure := x.over(s)
	for number, before := range s.spent {
		age := x.now().Sub(before.at)
		if !sure || (age-5*time.Minute).Abs() < 2*time.Second {
			return "retry at the very end"
		}
		reply, err := s.use(x.t, x.w, before.id, number)
		what := fmt.Sprintf("retry of %d after %s (over %t, granted %t, revision %d of %d)", number, age, over, x.granted, before.revision, x.revision)
		switch {
		case over || age > 5*time.Minute && x.granted:
			wantCode(x.t, what, err, codes.FailedPrecondition, "session")
		case !x.granted:
			if c := status.Code(err); c != codes.PermissionDenied && c != codes.FailedPrecondition {
				x.t.Errorf("%s: %v", what, err)
			}
		case err != nil || !bytes.Equal(reply.GetShare(), before.share) || int(reply.GetUsesLeft()) != int(s.uses)-len(s.spent):
			x.t.Errorf("%s: %v, another share or count", what, err)
		}
		return what
	}
	return ""
}

func (x *world) revoke() string {
	s := x.pick()
	if s == nil {
		return "revoke nothing"
	}
	if over, sure := x.over(s); over || !sure {
		return "revoke what has ended"
	}
	_, err := bullav1.NewSessionsClient(x.security.Conn()).RevokeSession(x.t.Context(), &bullav1.RevokeSessionRequest{Id: s.reply.GetSessionId(), Reason: "model"})
	if err != nil {
		x.t.Error(err)
	}
	s.ended = true
	return "revoke"
}

func (x *world) restart() string {
	x.r.Stop()
	x.r.Run()
	x.w, x.security = x.r.RawWith("workload", x.w.Key), x.r.Client("security")
	for _, s := range x.sessions {
		s.ended = true
	}
	return "restart"
}

// push takes the grant away, or gives it back. The bundle's own tests stay away: to run them again for each push would
// take most of the walk.
func (x *world) push() string {
	x.r.Push(func(files map[string]string) {
		for name := range files {
			if strings.HasSuffix(name, "_test.rego") {
				delete(files, name)
			}
		}
		if x.granted {
			files["canaries.yaml"] = strings.ReplaceAll(files["canaries.yaml"], "dev.bulla.test/workload", "dev.bulla.test/other")
			files["data/grants.yaml"] = strings.ReplaceAll(files["data/grants.yaml"], "dev.bulla.test/workload:", "dev.bulla.test/other:")
		} else {
			files["zones.yaml"] += strings.Repeat("\n", x.revision+1)
		}
	})
	x.granted = !x.granted
	x.revision++
	return "push"
}
