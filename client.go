package redischannels

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"
)

// errBehindHost is the error of a URL whose password has a / ? or #. The URL parser ends the
// password there, and its error would quote the rest of the password as the path.
var errBehindHost = errors.New("there is an @ after the host: write the characters / ? # @ of a password as %2F %3F %23 %40")

// NewRedisClient returns the client for a URL, a *redis.Client or a *redis.ClusterClient, which
// the caller must close. It does not connect to Redis. go-redis parses the URL:
//
//	redis://user:password@host:6379/0        one server; rediss:// with TLS, unix:///path
//	redis+cluster://host:6379                a cluster, more nodes by ?addr=host2:6379&addr=...;
//	                                         also redis:// with addr
//	redis+sentinel://host:26379/0?master_name=name
//	                                         Sentinel, more sentinels by addr; also redis://
//	                                         with master_name
//
// rediss+cluster:// and rediss+sentinel:// use TLS. The settings of the client are URL parameters
// with the names of go-redis, such as pool_size and read_timeout.
//
// The error wraps [ErrInvalidArgument]. It contains no part of the URL, which may have a
// password.
func NewRedisClient(rawURL string) (redis.UniversalClient, error) {
	client, err := parseRedisURL(rawURL)
	if err != nil {
		return nil, invalidArgument("URL of Redis", err)
	}
	return client, nil
}

func parseRedisURL(rawURL string) (redis.UniversalClient, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("cannot be parsed")
	}
	scheme, kind, _ := strings.Cut(u.Scheme, "+")
	query := u.Query()
	switch {
	case kind != "":
	case query.Has("master_name"):
		kind = "sentinel"
	case query.Has("addr"):
		kind = "cluster"
	}
	u.Scheme = scheme
	if scheme != "unix" && strings.Contains(u.Path+u.Fragment, "@") {
		return nil, errBehindHost
	}
	// The parsers quote a path or a parameter that is invalid.
	refused := func(err error) error {
		if strings.Contains(u.RawQuery, "@") {
			return errBehindHost
		}
		return err
	}
	switch kind {
	case "":
		options, err := redis.ParseURL(u.String())
		if err != nil {
			return nil, refused(err)
		}
		return redis.NewClient(options), nil
	case "cluster":
		options, err := redis.ParseClusterURL(u.String())
		if err != nil {
			return nil, refused(err)
		}
		return redis.NewClusterClient(options), nil
	case "sentinel":
		options, err := redis.ParseFailoverURL(u.String())
		if err != nil {
			return nil, refused(err)
		}
		if options.MasterName == "" {
			return nil, errors.New("sentinel needs the parameter master_name")
		}
		return redis.NewFailoverClient(options), nil
	default:
		return nil, fmt.Errorf("the scheme %s+%s is none of redis, rediss, unix, and redis+cluster, redis+sentinel", scheme, kind)
	}
}
