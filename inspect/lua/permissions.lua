-- Returns which permissions the user of this connection lacks. It reads no key, so it declares none: a user could not
-- run it with a key that it may not read.
-- ARGV[1] number of commands, then the commands, such as xack or xinfo|stream, then the keys that all of them are for
-- Returns {1 if the server can say, then each missing permission, such as +xack or ~orders}.
local check = redis.acl_check_cmd
if not check then
  return {0}
end
local count = tonumber(ARGV[1])
local without_key = {multi = {}, exec = {}, time = {}, scan = {'0'}, eval = {'', '0'}, evalsha = {'', '0'}}
local before_key = {xread = {'streams'}, xreadgroup = {'group', 'g', 'c', 'streams'}}
local behind_key = {xread = {'0'}, xreadgroup = {'>'}}

local function words_of(command, key)
  local words = {}
  for word in string.gmatch(command, '[^|]+') do
    words[#words + 1] = word
  end
  local parts = {without_key[command] or before_key[command] or {}, {not without_key[command] and key or nil}, behind_key[command] or {}}
  for _, part in ipairs(parts) do
    for _, word in ipairs(part) do
      words[#words + 1] = word
    end
  end
  return words
end

local out, refused = {1}, {}
for i = 2, count + 1 do
  local granted, refusals = false, {}
  for k = count + 2, #ARGV do
    if check(unpack(words_of(ARGV[i], ARGV[k]))) then
      granted = true
    else
      refusals[#refusals + 1] = ARGV[k]
    end
  end
  if not granted then
    out[#out + 1] = '+' .. ARGV[i]
  else
    for _, key in ipairs(refusals) do -- the command may be run, so it is the key
      refused[key] = true
    end
  end
end
for k = count + 2, #ARGV do
  if refused[ARGV[k]] then
    out[#out + 1] = '~' .. ARGV[k]
  end
end
return out
