module github.com/flaminco/redischannels/benchmarks

go 1.26.0

replace github.com/flaminco/redischannels => ../
