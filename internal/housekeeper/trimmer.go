package housekeeper

import (
	"context"
	"time"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/retention"
)

const (
	// trimInterval is when a topic is checked again of which something was removed, or which has grown.
	trimInterval = 5 * time.Second
	// restInterval is when one is checked again that is as it was, or which another process trims.
	restInterval = time.Minute
)

// trimmer is the job of removing what no group of a topic needs, until its last handle is closed.
type trimmer struct {
	keeper *keeper
	topic  keys.Topic
	duty   *duty

	length int64 // of the stream at the check before; of the goroutine of the duty

	// Guarded by keeper.mu.
	policy string        // to be noted, empty if that is done
	pinned retention.Pin // that was reported last to all handles
}

func (t *trimmer) look(ctx context.Context) (result, error) {
	t.keeper.mu.Lock()
	policy, used := t.policy, len(t.duty.handles) > 0
	t.keeper.mu.Unlock()
	if !used {
		return result{}, nil
	}
	look, err := t.keeper.trim(ctx, t.topic, policy)
	if err != nil {
		return result{}, err
	}
	pinned := t.learn(look, policy)
	return result{more: true, after: t.next(look), report: func(o Observer) {
		replaced(o, t.topic, look.Replaced, policy)
		if pinned {
			o.Pinned(t.topic, look.Pin, look.Length)
		}
	}}, nil
}

// next returns when to look again.
func (t *trimmer) next(look retention.Look) time.Duration {
	before := t.length
	t.length = look.Length
	switch {
	case look.More:
		t.length = -1 // the next page comes too soon to show whether the stream grows
		return pageInterval
	case look.Removed > 0 || look.Length != before:
		return trimInterval
	default:
		return restInterval
	}
}

// learn ends that a policy is to be noted, unless it is another one by now. It reports whether the stream is
// pinned for too long by what was not reported already.
func (t *trimmer) learn(look retention.Look, policy string) (pinned bool) {
	t.keeper.mu.Lock()
	defer t.keeper.mu.Unlock()
	if t.policy == policy {
		t.policy = ""
	}
	if look.Other {
		return false
	}
	before := t.pinned
	if t.pinned = (retention.Pin{}); !look.Pin.Stale {
		return false
	}
	t.pinned = look.Pin
	return before.Kind != look.Pin.Kind || before.Group != look.Pin.Group
}

// trim removes one page. A panic of a hook of the client is an error.
func (k *keeper) trim(ctx context.Context, topic keys.Topic, policy string) (look retention.Look, err error) {
	err = redisconn.Guard(func() (err error) {
		look, err = retention.Trim(ctx, k.client, topic, k.name, policy)
		return err
	})
	return look, err
}

func replaced(o Observer, topic keys.Topic, before, policy string) {
	if before != "" {
		o.Replaced(topic, before, policy)
	}
}

// Trim makes the housekeeper note the policy of a topic, and remove what no group needs until the
// handle is closed. An empty policy leaves the noted one.
func (h *Handle) Trim(topic keys.Topic, policy string) {
	if h.life.Enter() != nil {
		return
	}
	defer h.life.Leave()
	h.keeper.begin(h, dutyKey{Trimming, delayed.Target{Topic: topic}}, 0, func(d *duty) {
		t, _ := d.job.(*trimmer)
		if t == nil {
			t = &trimmer{keeper: h.keeper, topic: topic, duty: d, length: -1}
			d.job = t
		}
		if policy != "" {
			t.policy = policy
		}
		if _, known := d.handles[h]; !known {
			t.pinned = retention.Pin{} // this handle has not heard of it
		}
	})
}

// TrimNow notes the policy of a topic and trims it once, now. It returns the error, or makes the
// housekeeper go on.
func (h *Handle) TrimNow(ctx context.Context, topic keys.Topic, policy string) error {
	if err := h.life.Enter(); err != nil {
		return err
	}
	defer h.life.Leave()
	look, err := h.keeper.trim(ctx, topic, policy)
	if err != nil {
		return err
	}
	h.report(func(o Observer) { replaced(o, topic, look.Replaced, policy) })
	h.Trim(topic, "")
	return nil
}
