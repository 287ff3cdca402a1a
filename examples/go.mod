module github.com/flaminco/redischannels/examples

go 1.26.0

replace github.com/flaminco/redischannels => ../
