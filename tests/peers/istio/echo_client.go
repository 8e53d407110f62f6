// echo-client: the client that goes with echo-server. It says what the server saw, one line for each answer.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"time"

	"istio.io/istio/pkg/test/echo"
	"istio.io/istio/pkg/test/echo/common"
	"istio.io/istio/pkg/test/echo/proto"
	"istio.io/istio/pkg/test/echo/server/forwarder"
)

func init() { commands["echo-client"] = echoClient }

func echoClient(args []string) error {
	flags := flag.NewFlagSet("echo-client", flag.ExitOnError)
	url := flags.String("url", "", "where to send: http://, ws:// or grpc://")
	method := flags.String("method", "GET", "method of HTTP")
	http2 := flags.Bool("http2", false, "HTTP/2 by prior knowledge")
	count := flags.Int("count", 1, "how many requests")
	message := flags.String("message", "", "what to send with WebSocket and gRPC")
	timeout := flags.Duration("timeout", 20*time.Second, "for all of them together")
	if err := flags.Parse(args); err != nil {
		return err
	}
	request := &proto.ForwardEchoRequest{
		Url:           *url,
		Method:        *method,
		Http2:         *http2,
		Count:         int32(*count),
		Message:       *message,
		TimeoutMicros: common.DurationToMicros(*timeout),
	}
	client := forwarder.New()
	defer client.Close()
	answers, err := client.ForwardEcho(context.Background(), &forwarder.Config{Request: request})
	if err != nil {
		return err
	}
	for _, answer := range echo.ParseResponses(request, answers) {
		line, err := json.Marshal(map[string]any{
			"code":     answer.Code,
			"method":   answer.Method,
			"protocol": answer.Protocol,
			"url":      answer.URL,
			"version":  answer.Version,
			"client":   answer.IP,
			"headers":  answer.RequestHeaders,
			"body":     bodyLines(answer.RawContent),
		})
		if err != nil {
			return err
		}
		fmt.Println("answer", string(line))
	}
	return nil
}

// bodyLines are the lines that came from the server, without what the client puts before each.
func bodyLines(output string) []string {
	var lines []string
	for line := range strings.Lines(output) {
		if _, line, ok := strings.Cut(line, " body] "); ok {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines
}
