package soak

import (
	"math/rand/v2"
	"time"

	"github.com/flaminco/redischannels/internal/redistest"
)

// fault is one way to break something. It returns when that is over.
type fault struct {
	name   string
	weight int
	run    func(r *run)
}

// faults are drawn by their weights. Those of one process take a consumer or a publisher by
// chance; the journal records which they concerned, and when.
var faults = []fault{
	{"kill consumer", 3, func(r *run) {
		// So that it dies between commands that belong together.
		r.slowly(r.consumer(), r.kill)
	}},
	{"kill publisher", 1, func(r *run) { r.kill(r.publisher()) }},
	{"close consumer", 6, func(r *run) {
		// So that some acks are under way. That breaks nothing.
		p := r.consumer()
		r.slowly(p, r.end)
		r.start(p)
	}},
	{"freeze consumer", 5, func(r *run) {
		p := r.consumer()
		r.during("freeze", p.name, func() {
			p.child.Pause()
			r.wait(minIdle, 4*minIdle)
			p.child.Resume()
		})
	}},
	{"cut", 3, func(r *run) {
		p := r.any()
		r.during("cut", p.name, p.proxy.Cut)
	}},
	{"black hole", 2, func(r *run) {
		p := r.any()
		r.during("black hole", p.name, func() {
			p.proxy.Blackhole(true)
			r.wait(minIdle/4, 2*minIdle)
			p.proxy.Blackhole(false)
			p.proxy.Cut()
		})
	}},
	{"slow network", 2, func(r *run) {
		p := r.any()
		r.during("slow network", p.name, func() {
			p.proxy.Delay(time.Duration(10+r.random.IntN(40)) * time.Millisecond)
			r.wait(time.Second/2, time.Second)
			p.proxy.Delay(0)
		})
	}},
	{"byte-wise network", 1, func(r *run) {
		p := r.any()
		r.during("byte-wise network", p.name, func() {
			p.proxy.ByteWise(true)
			r.wait(time.Second/2, time.Second)
			p.proxy.ByteWise(false)
		})
	}},
	{"lost reply", 5, func(r *run) {
		commands := []string{"xreadgroup", "xack", "evalsha", "xautoclaim", "xadd", "exec"}
		p, command := r.consumer(), commands[r.random.IntN(len(commands))]
		if command == "xadd" || command == "exec" {
			p = r.publisher()
		}
		r.during("lost reply", p.name, func() {
			rule := p.proxy.DropReply(1+r.random.IntN(3), redistest.Command(command))
			r.wait(time.Second/4, time.Second)
			rule.Remove()
		})
	}},
	{"lost request", 3, func(r *run) {
		commands := []string{"xack", "evalsha"}
		p := r.consumer()
		r.during("lost request", p.name, func() {
			rule := p.proxy.DropRequest(-1, redistest.Command(commands[r.random.IntN(2)]))
			r.wait(time.Second/4, time.Second)
			rule.Remove()
		})
	}},
	{"late reply", 3, func(r *run) {
		// Later than the lease of what it brings, and earlier than the deadline of the read.
		p := r.consumer()
		r.during("late reply", p.name, func() {
			late := minIdle + 3*claimInterval/4 + time.Duration(r.random.Int64N(int64(claimInterval/2)))
			rule := p.proxy.BeforeReply(2, redistest.Command("xreadgroup"), func() { <-time.After(late) })
			r.wait(3*minIdle/2, 2*minIdle)
			rule.Remove()
		})
	}},
	{"server dies", 1, func(r *run) {
		r.during("server dies", "", func() {
			r.server.Kill()
			r.wait(time.Second/10, time.Second)
			r.server.Restart()
			redistest.Eventually(r.t, patience, func() bool { return r.admin.Ping(r.t.Context()).Err() == nil }, "the server has read its data")
		})
	}},
	{"server frozen", 1, func(r *run) {
		r.during("server frozen", "", func() {
			r.server.Pause()
			r.wait(time.Second/10, minIdle/2)
			r.server.Resume()
		})
	}},
	{"all connections killed", 1, func(r *run) {
		r.during("all connections killed", "", func() {
			_ = r.admin.ClientKillByFilter(r.t.Context(), "type", "normal", "skipme", "yes").Err()
		})
	}},
	// The following faults break nothing, but leave the name of a consumer in the group.
	{"restart slow consumer", 5, func(r *run) {
		p := r.slow[r.random.IntN(len(r.slow))]
		if r.random.IntN(3) == 0 {
			r.kill(p)
			return
		}
		r.end(p)
		r.start(p)
	}},
	{"requeue", 3, func(r *run) { r.requeue(topics[r.random.IntN(len(topics))]) }},
	{"scripts forgotten", 1, func(r *run) {
		r.during("scripts forgotten", "", func() { _ = r.admin.ScriptFlush(r.t.Context()).Err() })
	}},
}

// slowly does something to a process whose commands take their time.
func (r *run) slowly(p *process, what func(*process)) {
	p.proxy.Delay(20 * time.Millisecond)
	r.wait(time.Second/10, time.Second/5)
	what(p)
	p.proxy.Delay(0)
}

// draw chooses a fault.
func draw(random *rand.Rand) fault {
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	n := random.IntN(total)
	for _, f := range faults {
		if n -= f.weight; n < 0 {
			return f
		}
	}
	panic("weights")
}
