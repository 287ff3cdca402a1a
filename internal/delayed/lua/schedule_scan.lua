-- Lists a page of schedules.
-- common.lua stands before this text.
-- KEYS[1] due set, KEYS[2] schedules
-- ARGV[1] cursor, `0` to begin, ARGV[2] about how many
-- Returns now, the next cursor, `0` at the end, then for each schedule its ID, its state and when its
-- stored tick is due, or an empty text.
local page = redis.call('HSCAN', KEYS[2], ARGV[1], 'MATCH', 's:*', 'COUNT', ARGV[2])
local out = {text(milliseconds()), page[1]}
for i = 1, #page[2], 2 do
  local id = string.sub(page[2][i], 3)
  out[#out + 1] = id
  out[#out + 1] = page[2][i + 1]
  out[#out + 1] = redis.call('ZSCORE', KEYS[1], 'schedule:' .. id) or ''
end
return out
