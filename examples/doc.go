// Package examples is the root of complete programs that use redischannels, one per folder.
// They are a module of their own, so that what they need never becomes a dependency of the
// library.
package examples
