package redisconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// Recovery that does not recognise an error waits forever or gives up. The texts are those of
// Redis 6.2 to 8 and of Valkey.
func TestClassify(t *testing.T) {
	for text, want := range map[string]Kind{
		"NOGROUP No such key 'a' or consumer group 'g' in XREADGROUP with GROUP option": KindNoGroup,
		"NOGROUP the consumer group this client was blocked on no longer exists":        KindNoGroup,
		"UNBLOCKED the stream key no longer exists":                                     KindNoGroup,
		"ERR no such key": KindNoGroup,
		"UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": KindUnavailable,
		"UNBLOCKED client unblocked via CLIENT UNBLOCK":                                                KindUnavailable,
		"WRONGTYPE Operation against a key holding the wrong kind of value":                            KindWrongType,
		"NOPERM this user has no permissions to run the 'xack' command":                                KindNoPerm,
		"NOAUTH Authentication required.":                                                              KindNoPerm,
		"WRONGPASS invalid username-password pair or user is disabled.":                                KindNoPerm,
		"OOM command not allowed when used memory > 'maxmemory'.":                                      KindOOM,
		"EXECABORT Transaction discarded because of: OOM command not allowed":                          KindOOM,
		"EXECABORT Transaction discarded because of previous errors.":                                  KindOther,
		"BUSYGROUP Consumer Group name already exists":                                                 KindBusyGroup,
		"NOSCRIPT No matching script. Please use EVAL.":                                                KindNoScript,
		"ERR unknown command 'XAUTOCLAIM', with args beginning with: ":                                 KindUnknownCommand,
		"LOADING Redis is loading the dataset in memory":                                               KindUnavailable,
		"READONLY You can't write against a read only replica.":                                        KindUnavailable,
		"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.":             KindUnavailable,
		"CLUSTERDOWN The cluster is down":                                                              KindUnavailable,
		"TRYAGAIN Multiple keys request during rehashing of slot":                                      KindUnavailable,
		"MOVED 3999 127.0.0.1:6381":                                                                    KindUnavailable,
		"ASK 3999 127.0.0.1:6381":                                                                      KindUnavailable,
		"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.":       KindUnavailable,
		"NOREPLICAS Not enough good replicas to write.":                                                KindUnavailable,
		"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist":      KindUnavailable,
		"ERR Protocol error: invalid bulk length":                                                      KindProtocol,
		"ERR syntax error": KindOther,
		// Inside of a script, where Redis 6.2 puts its own words in front.
		"ERR The user executing the script can't run this command or subcommand":                                                KindNoPerm,
		"ERR Error running script (call to f_1): @user_script:7: WRONGTYPE Operation against a key":                             KindWrongType,
		"@user_script: 7: -OOM command not allowed when used memory > 'maxmemory'.":                                             KindOOM,
		"ERR Error running script (call to f_1): @user_script:7: @user_script: 7: Unknown Redis command called from Lua script": KindUnknownCommand,
		"ERR Unknown command called from script script: on @user_script:29.":                                                    KindUnknownCommand,
		"ERR Error running script (call to f_1): @user_script:7: NOGROUP No such key 'a' or consumer group 'g'":                 KindNoGroup,
		"READONLY You can't write against a read only replica. script: 5f4, on @user_script:9.":                                 KindUnavailable,
		"NOPERM this user has no permissions to access one of the keys used as arguments script: 5f4, on @user_script:9.":       KindNoPerm,
		"ERR ACL failure in script: User u has no permissions to run the 'xpending' command script: 5f4, on @user_script:9.":    KindNoPerm,
	} {
		require.Equal(t, want, Classify(ReplyError(text)), text)
		require.Equal(t, want, Classify(fmt.Errorf("wrapped: %w", ReplyError(text))), text)
	}
	for _, err := range []error{io.EOF, io.ErrUnexpectedEOF, &net.OpError{Op: "dial", Err: errors.New("refused")}, errors.New("redis: client is closed")} {
		require.Equal(t, KindNetwork, Classify(err), "%v", err)
	}
	require.Equal(t, KindCanceled, Classify(context.Canceled))
	require.Equal(t, KindCanceled, Classify(fmt.Errorf("wrapped: %w", context.DeadlineExceeded)))
	require.Equal(t, KindOther, Classify(nil))
}
