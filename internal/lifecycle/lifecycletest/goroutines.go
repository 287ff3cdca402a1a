package lifecycletest

import (
	"runtime"
	"strings"
)

const module = "github.com/flaminco/redischannels"

// goroutines returns the stacks of all goroutines by their names.
func goroutines() map[string]string {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	stacks := make(map[string]string)
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		name, _, _ := strings.Cut(stack, " [")
		stacks[name] = stack
	}
	return stacks
}

// atWork returns the stacks of the goroutines that the library has started, apart from those
// known, and that wait for something. One that runs may be at its end, so it is left out.
func atWork(known map[string]string) (stacks []string) {
	for name, stack := range goroutines() {
		_, old := known[name]
		_, creator, _ := strings.Cut(stack, "\ncreated by ")
		ours := strings.HasPrefix(creator, module) || strings.HasPrefix(creator, "sync.(*WaitGroup).Go")
		isCall := strings.Contains(stack, "/lifecycletest.")
		runs := strings.Contains(stack[:strings.IndexByte(stack, '\n')], "[run")
		if ours && !old && !isCall && !runs && inLibrary(stack) {
			stacks = append(stacks, stack)
		}
	}
	return stacks
}

// inLibrary reports whether a function of the library is on a stack, apart from those of
// package lifecycle: only they are left of a goroutine that has counted itself out.
func inLibrary(stack string) bool {
	for line := range strings.Lines(stack) {
		if strings.HasPrefix(line, module) && !strings.HasPrefix(line, module+"/internal/lifecycle.") {
			return true
		}
	}
	return false
}
