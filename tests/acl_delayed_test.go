package tests

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/schedule"
)

// errorLog is a logger that keeps missing permissions.
type errorLog struct {
	watermill.NopLogger
	errs chan error
}

func (l errorLog) Error(_ string, err error, _ watermill.LogFields) {
	if !errors.Is(err, redischannels.ErrPermission) {
		return
	}
	select {
	case l.errs <- err:
	default:
	}
}

func (l errorLog) With(watermill.LogFields) watermill.LoggerAdapter { return l }

// aclDelay publishes both kinds of messages and waits until they are appended.
func aclDelay(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	logged := errorLog{errs: make(chan error, 1)}
	p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client, Timeout: 5 * time.Second}, logged)
	require.NoError(t, err)
	defer p.Close()
	if err := p.Publish(topic, pubMessages("m", 2)...); err != nil {
		return err
	}
	if err := p.Publish(topic, append(delayedFor(50*time.Millisecond, pubMessages("d", 2)...), pubMessages("n", 1)...)...); err != nil {
		return err
	}
	return aclAppended(t, admin, topic, 5, logged.errs)
}

// aclKeep moves what others have delayed.
func aclKeep(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	logged := errorLog{errs: make(chan error, 1)}
	keeper, err := redischannels.NewHousekeeper(redischannels.HousekeeperConfig{Client: client, Topics: []string{topic}}, logged)
	require.NoError(t, err)
	aclStore(t, admin, topic)
	go func() { logged.Error("", keeper.Run(t.Context()), nil) }()
	defer keeper.Close()
	if err := aclAppended(t, admin, topic, 3, logged.errs); err != nil {
		return err
	}
	if !aclRecorded(t, admin, topic) {
		return errors.New("the run is not recorded")
	}
	return nil
}

// aclRecorded reports whether the run of the schedule of aclStore is recorded.
func aclRecorded(t *testing.T, admin *redis.Client, topic string) bool {
	t.Helper()
	return admin.HExists(t.Context(), schedulesKey(topic), "r:once").Val()
}

// aclSchedule uses everything of package schedule.
func aclSchedule(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	require.NoError(t, admin.ScriptFlush(t.Context()).Err())
	logged := errorLog{errs: make(chan error, 1)}
	s, err := schedule.New(schedule.Config{Client: client, Topic: topic, Interval: 100 * time.Millisecond}, logged)
	require.NoError(t, err)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		logged.Error("", s.Run(context.Background()), nil)
	}()
	defer func() {
		require.NoError(t, s.Close())
		<-ran
	}()
	_, err = s.Put(t.Context(), schedule.Schedule{ID: "each second", Cron: "* * * * * *", Message: tickMessage("a")})
	if err != nil {
		return err
	}
	if err := aclAppended(t, admin, topic, 2, logged.errs); err != nil {
		return err
	}
	if err := errors.Join(s.Pause(t.Context(), "each second"), s.Resume(t.Context(), "each second")); err != nil {
		return err
	}
	if _, err := s.RunNow(t.Context(), "each second"); err != nil {
		return err
	}
	for info, err := range s.List(t.Context()) {
		if err != nil {
			return err
		}
		require.GreaterOrEqual(t, len(info.Runs), 3)
		_, err = s.Cancel(t.Context(), info.ID)
		return err
	}
	return errors.New("there is no schedule")
}

// aclStore delays two messages and a schedule by a process that ends, and something that becomes a dead letter.
func aclStore(t *testing.T, admin *redis.Client, topic string) {
	t.Helper()
	p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: admin}, nil)
	require.NoError(t, err)
	require.NoError(t, p.Publish(topic, delayedFor(10*time.Millisecond, pubMessages("d", 2)...)...))
	require.NoError(t, p.Close())
	s := newSchedules(t, admin, topic)
	require.NoError(t, s.At(t.Context(), "once", serverTime(t, admin).Add(100*time.Millisecond), tickMessage("once")))
	require.NoError(t, s.Close())
	require.NoError(t, admin.ZAdd(t.Context(), delayKeys(topic)[1], redis.Z{Member: "no entry"}).Err())
}

func aclAppended(t *testing.T, admin *redis.Client, topic string, n int64, failed <-chan error) error {
	t.Helper()
	for deadline := time.After(soon); admin.XLen(t.Context(), topic).Val() < n; {
		select {
		case err := <-failed:
			return err
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			return errors.New("not all messages are appended")
		}
	}
	return nil
}

// aclCancel lists and cancels.
func aclCancel(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: admin}, nil)
	require.NoError(t, err)
	defer p.Close()
	require.NoError(t, p.Publish(topic, delayedFor(time.Hour, pubMessages("d", 150)...)...))
	waiting, err := redischannels.NewDelayedMessages(redischannels.DelayedMessagesConfig{Client: client}, nil)
	require.NoError(t, err)
	n := 0
	for m, err := range waiting.List(t.Context(), topic) {
		if err != nil {
			return err
		}
		n++
		if n != 100 { // the end of a page, behind which the list goes on
			continue
		}
		cancelled, err := waiting.Cancel(t.Context(), topic, m.ID)
		if err != nil {
			return err
		}
		require.Equal(t, []string{m.ID}, cancelled)
	}
	require.Equal(t, 150, n)
	return nil
}
