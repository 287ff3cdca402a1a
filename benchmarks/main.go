// Command benchmarks measures redischannels against watermill-redisstream and bare go-redis.
package main

func main() {}
