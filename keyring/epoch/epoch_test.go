package epoch

import (
	"errors"
	"testing"
	"time"
)

var start = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)

func TestEpochs(t *testing.T) {
	var k Keys
	first, end := k.Current(start)
	if again, _ := k.Current(start.Add(Step - 1)); again != first || !end.Equal(start.Add(Life)) {
		t.Errorf("%s until %s, then %s", first, end, again)
	}
	second, end := k.Current(start.Add(Step))
	if second == first || !end.Equal(start.Add(Step+Life)) {
		t.Errorf("after a step: %s until %s", second, end)
	}
	share := func(at time.Duration, id, session string, number uint32) ([32]byte, error) {
		f, err := k.Shares(start.Add(at), id, session)
		if err != nil {
			return [32]byte{}, err
		}
		return f(number), nil
	}
	a, err := share(Life-1, first, "s", 1)
	if b, _ := share(Life-1, first, "s", 1); err != nil || a != b {
		t.Errorf("the same share twice: %v", err)
	}
	seen := map[[32]byte]bool{a: true}
	for _, other := range []struct {
		id, session string
		number      uint32
	}{{first, "s", 2}, {first, "t", 1}, {second, "s", 1}} {
		s, err := share(Life-1, other.id, other.session, other.number)
		if err != nil || seen[s] {
			t.Errorf("%v: %v", other, err)
		}
		seen[s] = true
	}
	if _, err := share(Life, first, "s", 1); !errors.Is(err, ErrGone) {
		t.Errorf("after its end: %v", err)
	}
	if _, err := share(Life-1, first, "s", 1); !errors.Is(err, ErrGone) {
		t.Errorf("once it is gone it stays so, whatever the clock says: %v", err)
	}
	if _, err := share(Life, second, "s", 1); err != nil {
		t.Errorf("the second one: %v", err)
	}
	if _, err := share(Step-tolerance+1, second, "s", 1); err != nil {
		t.Errorf("a call that was a little earlier: %v", err)
	}
	if _, err := share(0, second, "s", 1); !errors.Is(err, ErrGone) {
		t.Errorf("on a clock that went back before its start: %v", err)
	}
	if k.Sweep(start.Add(2 * Life)); len(k.all) != 0 {
		t.Error("Sweep left keys that are over")
	}
}
