// hbone-server and hbone-client: the two ends of Istio's tunnel, with certificates from files.
package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"istio.io/istio/pkg/hbone"
)

func init() {
	commands["hbone-server"] = hboneServer
	commands["hbone-client"] = hboneClient
}

// pemFiles are the flags that say who this side is and whom it trusts.
type pemFiles struct{ cert, key, root string }

func (c *pemFiles) flags(flags *flag.FlagSet) {
	flags.StringVar(&c.cert, "cert", "", "PEM file of the certificate and what is above it")
	flags.StringVar(&c.key, "key", "", "PEM file of its key")
	flags.StringVar(&c.root, "root", "", "PEM file of the roots to trust")
}

func (c *pemFiles) load() (tls.Certificate, *x509.CertPool, error) {
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return pair, nil, err
	}
	pem, err := os.ReadFile(c.root)
	if err != nil {
		return pair, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return pair, nil, fmt.Errorf("%s holds no certificate", c.root)
	}
	return pair, pool, nil
}

// hboneServer serves Istio's tunnel server behind mutual TLS; it dials whatever a CONNECT names.
func hboneServer(args []string) error {
	flags := flag.NewFlagSet("hbone-server", flag.ExitOnError)
	listen := flags.String("listen", "", "IP:PORT to listen on")
	var who pemFiles
	who.flags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	pair, pool, err := who.load()
	if err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", *listen, &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2"},
	})
	if err != nil {
		return err
	}
	server := hbone.NewServer()
	inner := server.Handler
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && len(r.TLS.PeerCertificates[0].URIs) > 0 {
			fmt.Println("client", r.TLS.PeerCertificates[0].URIs[0], r.Method, r.Host)
		}
		inner.ServeHTTP(w, r)
	})
	server.Protocols.SetHTTP2(true)
	fmt.Println("ready", listener.Addr())
	return server.Serve(listener)
}

// hboneClient sends random bytes through Istio's dialer to something that echoes, and compares what comes back.
func hboneClient(args []string) error {
	flags := flag.NewFlagSet("hbone-client", flag.ExitOnError)
	proxy := flags.String("proxy", "", "IP:PORT of the tunnel")
	target := flags.String("target", "", "IP:PORT that the tunnel is to reach, where something echoes")
	expected := flags.String("expect", "", "SPIFFE ID that the tunnel's certificate must have")
	count := flags.Int64("bytes", 1<<20, "how many bytes to send on each connection")
	connections := flags.Int("connections", 1, "how many at once")
	banner := flags.Int("banner", 0, "read so many bytes before anything is sent, and print them")
	var who pemFiles
	who.flags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	pair, pool, err := who.load()
	if err != nil {
		return err
	}
	dialer := hbone.NewDialer(hbone.Config{ProxyAddress: *proxy, TLS: &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2"},
		// A mesh certificate has no DNS name to check; what it has is checked below.
		InsecureSkipVerify: true,
		VerifyConnection:   func(state tls.ConnectionState) error { return verify(state, pool, *expected) },
	}})
	var wait sync.WaitGroup
	failures := make(chan error, *connections)
	for i := range *connections {
		wait.Go(func() {
			if err := exchange(dialer, *target, int64(i), *count, *banner); err != nil {
				failures <- err
			}
		})
	}
	wait.Wait()
	close(failures)
	return <-failures
}

func verify(state tls.ConnectionState, pool *x509.CertPool, expected string) error {
	leaf := state.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		between.AddCert(cert)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between}); err != nil {
		return err
	}
	for _, uri := range leaf.URIs {
		if uri.String() == expected {
			return nil
		}
	}
	return fmt.Errorf("the tunnel is %v, not %s", leaf.URIs, expected)
}

func exchange(dialer hbone.Dialer, target string, seed, count int64, banner int) error {
	conn, err := dialer.Dial("tcp", target)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if banner > 0 {
		first := make([]byte, banner)
		if _, err := io.ReadFull(conn, first); err != nil {
			return fmt.Errorf("reading the banner: %w", err)
		}
		fmt.Printf("banner %q\n", first)
	}
	sent, received := sha256.New(), sha256.New()
	done := make(chan error, 1)
	go func() { done <- send(conn, io.TeeReader(io.LimitReader(rand.New(rand.NewSource(seed)), count), sent)) }()
	got, err := io.CopyN(received, conn, count)
	if err != nil {
		return fmt.Errorf("after %d bytes of the echo: %w", got, err)
	}
	if err := <-done; err != nil {
		return err
	}
	if string(sent.Sum(nil)) != string(received.Sum(nil)) {
		return errors.New("the echo is not what was sent")
	}
	fmt.Printf("echoed %d %x\n", got, received.Sum(nil))
	return nil
}

func send(conn net.Conn, from io.Reader) error {
	_, err := io.Copy(conn, from)
	return err
}
