-- Stands before the scripts that copy entries of return streams.

-- The fields of an entry of a return stream without those that name its original.
local function original(fields)
  local n = #fields
  if n > 6 and fields[n - 5] == '_return_entry_id' and fields[n - 3] == '_return_reason' and fields[n - 1] == '_return_count' then
    for i = n, n - 5, -1 do
      fields[i] = nil
    end
  end
  return fields
end
