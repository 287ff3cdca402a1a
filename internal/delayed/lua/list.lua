-- Lists a page of what waits, in the order in which it is due.
-- common.lua stands before this text.
-- KEYS[1] due set, KEYS[2] delayed
-- ARGV[1] score and ARGV[2] ID of the last entry of the page before, or two empty texts
-- ARGV[3] most entries, ARGV[4] most bytes (one entry may exceed them)
-- Returns delayed ID, due time and packed entry in turn, an empty one if there is none.
local due, delayed, last, after = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local most, bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
local rank = 0
if after ~= '' then
  rank = redis.call('ZRANK', due, after)
  rank = rank and rank + 1 or redis.call('ZCOUNT', due, '-inf', '(' .. last)
end
local out, size = {}, 0
while #out == 0 do
  local page = redis.call('ZRANGE', due, rank, rank + most - 1, 'WITHSCORES')
  if #page == 0 then
    return out
  end
  rank = rank + most
  for i = 1, #page, 2 do
    -- Members of one score stand in the order of their bytes.
    if after == '' or tonumber(page[i + 1]) > tonumber(last) or page[i] > after then
      local entry = redis.call('HGET', delayed, page[i]) or ''
      size = size + #entry
      if #out > 0 and size > bytes then
        return out
      end
      out[#out + 1] = page[i]
      out[#out + 1] = page[i + 1]
      out[#out + 1] = entry
    end
  end
end
return out
