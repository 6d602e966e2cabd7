-- One step through all keys of a node.
-- KEYS: one that this node has, so that clients of a cluster ask this node. It is not read.
-- ARGV: where to go on, which keys, how many to look at.

return redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
