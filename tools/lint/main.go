// Command lint checks rules of the house style that need the types or the imports of a package. It
// is a tool of go vet, which keeps the results of packages that have not changed:
//
//	go vet -vettool=PATH ./...
package main

import (
	"fmt"
	"os"

	"golang.org/x/tools/go/analysis/unitchecker"
)

func main() {
	analyzers, err := rules()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lint:", err)
		os.Exit(1)
	}
	unitchecker.Main(analyzers...)
}
