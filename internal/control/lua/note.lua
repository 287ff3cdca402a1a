-- Adds a line to the audit stream. common.lua stands before this text.
-- ARGV[4] action, ARGV[5...] names and values of its details
return collision(control, topic) or note(ARGV[4], unpack(ARGV, 5)) or 1
