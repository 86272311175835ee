"""What a run will cost, by arithmetic alone: shapes, bytes, operations, seconds. No torch, no weight, no GPU asked."""
