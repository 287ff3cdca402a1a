package tests

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// The complete program of the README, in a module of its own as a user has it, prints what the page says and
// ends at an interrupt with its order acknowledged. Only the address of the server and the place of the
// library differ.
func TestREADME_ProgramRuns(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	program := regexp.MustCompile("(?s)```go\n(package main\n.*?)```").FindSubmatch(page)
	require.NotNil(t, program, "a complete program")
	output := regexp.MustCompile("(?s)```text\n(.*?)```").FindSubmatch(page)
	require.NotNil(t, output, "what it prints")
	server := redistest.Start(t)
	require.Contains(t, string(program[1]), "localhost:6379")
	source := strings.ReplaceAll(string(program[1]), "localhost:6379", server.Addr())

	dir := t.TempDir()
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	sums, err := os.ReadFile("../go.sum")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.sum"), sums, 0o600))
	run := func(args ...string) {
		t.Helper()
		command := exec.CommandContext(t.Context(), "go", args...)
		command.Dir = dir
		command.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
		out, err := command.CombinedOutput()
		require.NoError(t, err, "go %v: %s", args, out)
	}
	run("mod", "init", "example.com/program")
	run("mod", "edit", "-require=github.com/flaminco/redischannels@v0.0.0", "-replace=github.com/flaminco/redischannels="+root)
	run("build", "-o", "program", ".")

	process := exec.CommandContext(t.Context(), filepath.Join(dir, "program"))
	stdout, err := process.StdoutPipe()
	require.NoError(t, err)
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer log.Close()
	process.Stderr = log
	require.NoError(t, process.Start())
	promised := strings.Split(strings.TrimSpace(string(output[1])), "\n")
	lines := bufio.NewScanner(stdout)
	require.True(t, lines.Scan(), "no line")
	require.Equal(t, promised[len(promised)-1], lines.Text())
	require.NoError(t, process.Process.Signal(os.Interrupt))
	require.False(t, lines.Scan(), lines.Text())
	require.NoError(t, process.Wait())
	name, _, _ := strings.Cut(promised[0], " consumer=")
	logged, err := os.ReadFile(log.Name())
	require.NoError(t, err)
	require.Contains(t, string(logged), name)
	pending, err := server.Client(t).XPending(t.Context(), "orders", "billing").Result()
	require.NoError(t, err)
	require.Zero(t, pending.Count, "the order is acknowledged")
}
