-- Scans some keys of a node.
-- KEYS: a key that belongs to this node, so that the client of a cluster calls this node. It is not read.
-- ARGV: the cursor, the pattern, how many keys to scan.

return redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
