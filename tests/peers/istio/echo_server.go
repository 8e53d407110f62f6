// echo-server: the workload of Istio's own tests, which answers with what it saw of a request.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"istio.io/istio/pkg/config/protocol"
	"istio.io/istio/pkg/test/echo/common"
	"istio.io/istio/pkg/test/echo/server"
)

func init() { commands["echo-server"] = echoServer }

// echoServer prints a line for each request that comes once it is ready.
func echoServer(args []string) error {
	flags := flag.NewFlagSet("echo-server", flag.ExitOnError)
	http := flags.Int("http", 8080, "port for HTTP/1.1, HTTP/2 by prior knowledge and WebSocket")
	grpc := flags.Int("grpc", 8081, "port for gRPC")
	version := flags.String("version", "", "what it calls itself in its answers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	// It asks itself until it is ready.
	var ready atomic.Bool
	echo := server.New(server.Config{
		Ports: common.PortList{
			{Name: "http", Port: *http, Protocol: protocol.HTTP},
			{Name: "grpc", Port: *grpc, Protocol: protocol.GRPC},
		},
		Version: *version,
		ReportRequest: func() {
			if ready.Load() {
				fmt.Println("request")
			}
		},
	})
	if err := echo.Start(); err != nil {
		return err
	}
	ready.Store(true)
	fmt.Println("ready")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	return echo.Close()
}
