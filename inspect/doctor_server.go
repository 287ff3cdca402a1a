package inspect

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// serverChecks are the checks of a server. Each returns a finding without its node.
var serverChecks = []func(server) (Finding, bool){
	checkVersion, checkDefects, checkScripts, checkEviction, checkMemory, checkPersistence, checkLastWrites, checkRole, checkReplicas,
	checkClock,
}

// is reports whether a field of INFO has one of the values.
func (s server) is(field string, values ...string) bool {
	return slices.Contains(values, s.info[field])
}

func (s server) number(field string) int64 {
	n, _ := strconv.ParseInt(s.info[field], 10, 64) // 0 where an older server has no such field
	return n
}

// product returns the name and the version of the server.
func (s server) product() (name string, v version) {
	if text := s.info["valkey_version"]; text != "" {
		return "Valkey", parseVersion(text)
	}
	return "Redis", parseVersion(s.info["redis_version"])
}

type version [3]int

func parseVersion(text string) (v version) {
	for i, part := range strings.SplitN(text, ".", 3) {
		v[i], _ = strconv.Atoi(part) // 0 for what is no number
	}
	return v
}

func (v version) less(w version) bool { return slices.Compare(v[:], w[:]) < 0 }

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func checkVersion(s server) (Finding, bool) {
	name, v := s.product()
	return Finding{
		Check: "version", Severity: SeverityCritical,
		Problem: fmt.Sprintf("the server is %s %s, which is not supported", name, v),
		Action:  "upgrade to Redis 6.2 or Valkey 7.2, or newer",
	}, v.less(oldest)
}

// fixed are the first releases of each branch without CVE-2025-49844: a script can take over the server.
var fixed = map[string][]version{
	"Redis":  {{6, 2, 20}, {7, 2, 11}, {7, 4, 6}, {8, 0, 4}, {8, 2, 2}},
	"Valkey": {{7, 2, 11}, {8, 0, 6}, {8, 1, 4}},
}

func checkDefects(s server) (Finding, bool) {
	name, v := s.product()
	return Finding{
		Check: "defects", Severity: SeverityWarning,
		Problem: fmt.Sprintf("%s %s has a security defect in its scripting engine (CVE-2025-49844), unless the distributor has fixed it under the same version", name, v),
		Action:  "upgrade to the newest release of its branch",
	}, !v.less(oldest) && defective(v, fixed[name])
}

// oldest is the oldest version that is supported.
var oldest = version{6, 2}

// defective reports a version before the first fixed one of its branch, or of a branch without a fix that is
// older than the newest with one.
func defective(v version, fixed []version) bool {
	for _, f := range fixed {
		if v[0] == f[0] && v[1] == f[1] {
			return v.less(f)
		}
	}
	return v.less(fixed[len(fixed)-1])
}

func checkScripts(s server) (Finding, bool) {
	return Finding{
		Check: "scripting", Severity: SeverityCritical,
		Problem: fmt.Sprintf("scripts cannot be run: %v", s.scripts),
		Action:  "allow EVAL and EVALSHA, and the ACL permissions +eval +evalsha: subscriptions in a group do not work without them",
	}, s.scripts != nil
}

func checkEviction(s server) (Finding, bool) {
	f := Finding{
		Check: "eviction", Severity: SeverityCritical,
		Problem: fmt.Sprintf("maxmemory-policy is %s with a maxmemory of %s bytes: a full server deletes whole streams", s.info["maxmemory_policy"], s.info["maxmemory"]),
		Action:  "CONFIG SET maxmemory-policy noeviction, so that a full server refuses writes instead",
	}
	if strings.HasPrefix(s.info["maxmemory_policy"], "volatile") {
		f.Severity = SeverityWarning
		f.Problem = fmt.Sprintf("maxmemory-policy is %s: a full server deletes runs and other keys with a TTL", s.info["maxmemory_policy"])
	}
	return f, s.number("maxmemory") > 0 && !s.is("maxmemory_policy", "noeviction", "")
}

// fullFrom is the share of maxmemory, in percent, from which checkMemory warns.
const fullFrom = 80

func checkMemory(s server) (Finding, bool) {
	used, limit := s.number("used_memory"), s.number("maxmemory")
	return Finding{
		Check: "memory", Severity: SeverityWarning,
		Problem: fmt.Sprintf("%d of %d bytes of memory are used, more than %d %%", used, limit, fullFrom),
		Action:  "set a retention on the topics, trim streams or dead letters, or raise maxmemory: a full server refuses to publish",
	}, limit > 0 && used > limit/100*fullFrom
}

func checkPersistence(s server) (Finding, bool) {
	return Finding{
		Check: "persistence", Severity: SeverityWarning,
		Problem: "appendonly is off: a restart of the server loses what was written since the last snapshot, messages and acknowledgements",
		Action:  "set appendonly yes, or rely on replicas on purpose",
	}, s.is("aof_enabled", "0")
}

func checkLastWrites(s server) (Finding, bool) {
	f := Finding{Check: "disk", Severity: SeverityCritical, Action: "look at the log of the server and at its disk: it may refuse writes (MISCONF)"}
	switch {
	case s.is("aof_last_write_status", "err"):
		f.Problem = "the last write to the append-only file failed"
	case s.is("rdb_last_bgsave_status", "err"):
		f.Problem = "the last snapshot (BGSAVE) failed"
	case s.is("aof_last_bgrewrite_status", "err"):
		f.Problem = "the last rewrite of the append-only file failed"
	}
	return f, f.Problem != ""
}

func checkRole(s server) (Finding, bool) {
	return Finding{
		Check: "role", Severity: SeverityCritical,
		Problem: "the server is a replica and refuses writes (READONLY)",
		Action:  "connect to the master, through Sentinel (redis.NewFailoverClient) or redis.ClusterClient if it changes",
	}, s.is("role", "slave") && !s.is("slave_read_only", "0")
}

// lagLimit is how many seconds a replica may be silent before checkReplicas warns. It reports once per second.
const lagLimit = 10

func checkReplicas(s server) (Finding, bool) {
	f := Finding{Check: "replicas", Severity: SeverityWarning, Action: "look at the link and the log of the replica: a failover to it would lose messages"}
	for i := range int(s.number("connected_slaves")) {
		replica := make(map[string]string)
		for field := range strings.SplitSeq(s.info[fmt.Sprint("slave", i)], ",") {
			name, value, _ := strings.Cut(field, "=")
			replica[name] = value
		}
		lag, _ := strconv.Atoi(replica["lag"]) // not there while it is not online
		if replica["state"] != "online" || lag > lagLimit {
			f.Problem = fmt.Sprintf("the replica %s:%s is behind: its state is %s, and it was last heard of %d s ago", replica["ip"], replica["port"], replica["state"], lag)
			return f, true
		}
	}
	return Finding{
		Check: "replicas", Severity: SeverityInfo,
		Problem: "the server has no replica: if it is lost, everything since the last backup is lost with it",
		Action:  "add a replica, with Sentinel or Redis Cluster",
	}, s.is("role", "master") && s.number("connected_slaves") == 0
}

func checkClock(s server) (Finding, bool) {
	return Finding{
		Check: "clock", Severity: SeverityWarning,
		Problem: fmt.Sprintf("the clock of the server differs from that of this machine by %v", s.skew.Round(time.Second)),
		Action:  "synchronise both clocks: due times and ages count by the clock of the server, times that your programs give by theirs",
	}, (s.skew.Abs() - s.margin) > skewLimit
}
