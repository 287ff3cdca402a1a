-- Lists entries that are pending for a consumer. A script, because a cluster
-- client that reads from replicas would send a plain XPENDING to one.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] start, ARGV[4] limit
-- Returns entry ID and delivery count in turn.
local out = {}
for _, p in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], '+', ARGV[4], ARGV[2])) do
  out[#out + 1] = p[1]
  out[#out + 1] = p[4]
end
return out
