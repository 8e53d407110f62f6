// grpc-server and grpc-client: the interoperability tests of gRPC, in its Go implementation.
// https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md says what each case does.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testing "google.golang.org/grpc/interop/grpc_testing"
)

func init() {
	commands["grpc-server"] = grpcServer
	commands["grpc-client"] = grpcClient
}

func grpcServer(args []string) error {
	flags := flag.NewFlagSet("grpc-server", flag.ExitOnError)
	listen := flags.String("listen", "", "IP:PORT to listen on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	testing.RegisterTestServiceServer(server, interop.NewTestServer())
	fmt.Println("ready", listener.Addr())
	return server.Serve(listener)
}

// plain is a case that needs the client of the test service and nothing else.
type plain func(context.Context, testing.TestServiceClient, ...grpc.CallOption)

var plainCases = map[string]plain{
	"empty_unary":                 interop.DoEmptyUnaryCall,
	"large_unary":                 interop.DoLargeUnaryCall,
	"client_streaming":            interop.DoClientStreaming,
	"server_streaming":            interop.DoServerStreaming,
	"ping_pong":                   interop.DoPingPong,
	"empty_stream":                interop.DoEmptyStream,
	"cancel_after_begin":          interop.DoCancelAfterBegin,
	"cancel_after_first_response": interop.DoCancelAfterFirstResponse,
	"timeout_on_sleeping_server":  interop.DoTimeoutOnSleepingServer,
	"status_code_and_message":     interop.DoStatusCodeAndMessage,
	"special_status_message":      interop.DoSpecialStatusMessage,
	"custom_metadata":             interop.DoCustomMetadata,
}

// grpcClient runs the cases that are named, on one connection. A case that fails ends the program and says why.
func grpcClient(args []string) error {
	flags := flag.NewFlagSet("grpc-client", flag.ExitOnError)
	target := flags.String("target", "", "IP:PORT of the server")
	timeout := flags.Duration("timeout", 20*time.Second, "for each case")
	if err := flags.Parse(args); err != nil {
		return err
	}
	connection, err := grpc.NewClient(*target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	for _, name := range flags.Args() {
		if err := runCase(connection, name, *timeout); err != nil {
			return err
		}
		fmt.Println("passed", name)
	}
	return nil
}

func runCase(connection *grpc.ClientConn, name string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	switch name {
	case "unimplemented_method":
		interop.DoUnimplementedMethod(ctx, connection)
	case "unimplemented_service":
		interop.DoUnimplementedService(ctx, testing.NewUnimplementedServiceClient(connection))
	default:
		run := plainCases[name]
		if run == nil {
			return fmt.Errorf("no case %q", name)
		}
		run(ctx, testing.NewTestServiceClient(connection))
	}
	return nil
}
