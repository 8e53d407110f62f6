// Istio's own pieces, each as a subcommand, for tests of Covet Mesh against real peers. No control plane is needed.
//
// A subcommand prints what a test waits for as lines of "key value" on standard output; everything else goes to
// standard error. It ends with status 1 and a message on failure, and runs until SIGTERM where it is a server.
package main

import (
	"fmt"
	"os"
	"sort"

	"istio.io/istio/pkg/log"
)

// commands is filled by the file of each subcommand.
var commands = map[string]func(args []string) error{}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		names := make([]string, 0, len(commands))
		for name := range commands {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintln(os.Stderr, "usage: istio-peer SUBCOMMAND [options], one of:", names)
		os.Exit(2)
	}
	// Istio logs to standard output if it is not told otherwise.
	options := log.DefaultOptions()
	options.OutputPaths = []string{"stderr"}
	if err := log.Configure(options); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
