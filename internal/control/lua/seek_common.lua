-- Stands before the scripts of a seek; common.lua, and behind.lua of internal/stream, stand before this text.
-- KEYS[4] return stream of the group, KEYS[5] its due set, KEYS[6] hash of delayed entries
-- ARGV[4] entry ID after which the group is to read, or $; ARGV[5] consumer that holds released entries
-- ARGV[6] min idle time in ms where no subscription has noted one
local returns, due, delayed = KEYS[4], KEYS[5], KEYS[6]
local holder = ARGV[5]

-- How many pending entries one command lists.
local page = 1000

-- Calls f with pages of the pending entries of a stream, from an ID on.
local function each_pending(key, from, f)
  repeat
    local some = redis.call('XPENDING', key, group, from, '+', page)
    if #some > 0 then
      f(some)
      from = '(' .. some[#some][1]
    end
  until #some < page
end

-- The consumers whose entries are in flight: renewed within the min idle time, and not released.
local function busy(streams)
  local idle = tonumber(redis.call('HGET', control, 'min-idle:' .. group) or ARGV[6])
  local names, seen = {}, {}
  for _, key in ipairs(streams) do
    each_pending(key, '-', function(some)
      for _, p in ipairs(some) do
        if p[3] < idle and p[2] ~= holder and not seen[p[2]] then
          seen[p[2]] = true
          names[#names + 1] = p[2]
        end
      end
    end)
  end
  return names
end

-- The streams in which there is the group: not the return stream where no subscription has been.
local function streams()
  if redis.call('EXISTS', returns) == 1 and named(returns, group) then
    return {stream, returns}
  end
  return {stream}
end
