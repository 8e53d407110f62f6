// ca-client: Istio's client of a certificate authority asks for one certificate and prints the chain.
//
// That client asks for the caller's own identity. A node agent asks for the identity of one of its pods, which is a
// field more in the same request: --impersonate adds it between Istio's client and its connection.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"time"
	"unsafe"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	pb "istio.io/api/security/v1alpha1"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/credentialfetcher/plugin"
	"istio.io/istio/security/pkg/nodeagent/caclient/providers/citadel"
	"istio.io/istio/security/pkg/pki/util"
)

func init() { commands["ca-client"] = askCA }

func askCA(args []string) error {
	flags := flag.NewFlagSet("ca-client", flag.ExitOnError)
	address := flags.String("address", "", "HOST:PORT of the authority")
	serverName := flags.String("server-name", "", "name that its certificate must have; default: the host")
	root := flags.String("root", "", "PEM file of the roots to trust")
	token := flags.String("token-file", "", "file of the bearer token")
	clusterID := flags.String("cluster", "Kubernetes", "cluster that is named to the authority")
	identity := flags.String("identity", "", "SPIFFE ID that the request names")
	impersonate := flags.Bool("impersonate", false, "ask for the identity as a node agent does")
	ttl := flags.Duration("ttl", time.Hour, "wanted validity")
	out := flags.String("out", "", "folder for key.pem, chain.pem and roots.pem; default: print the chain")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *address == "" || *root == "" || *identity == "" {
		return errors.New("--address, --root and --identity are needed")
	}

	csr, key, err := util.GenCSR(util.CertOptions{
		Host: *identity, ECSigAlg: util.EcdsaSigAlg, ECCCurve: util.P256Curve,
	})
	if err != nil {
		return err
	}
	client, err := citadel.NewCitadelClient(&security.Options{
		CAEndpoint: *address, CAEndpointSAN: *serverName, ClusterID: *clusterID,
		CredFetcher: plugin.CreateTokenPlugin(*token),
	}, &citadel.TLSOptions{RootCert: *root})
	if err != nil {
		return err
	}
	defer client.Close()
	if *impersonate {
		if err := addIdentity(client, *identity); err != nil {
			return err
		}
	}
	chain, err := client.CSRSign(csr, int64(ttl.Seconds()))
	if err != nil {
		return err
	}

	certs, roots := "", chain[len(chain)-1]
	for _, cert := range chain[:len(chain)-1] {
		certs += cert
	}
	if _, err := tls.X509KeyPair([]byte(certs), key); err != nil {
		return fmt.Errorf("the certificate is not for the key: %w", err)
	}
	if *out == "" {
		fmt.Print(certs, roots)
		return nil
	}
	for name, content := range map[string]string{"key.pem": string(key), "chain.pem": certs, "roots.pem": roots} {
		if err := os.WriteFile(filepath.Join(*out, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	fmt.Println("elements", len(chain))
	return nil
}

// addIdentity puts withIdentity between the client and its connection. The client offers no way to do that.
func addIdentity(client *citadel.CitadelClient, identity string) error {
	field := reflect.ValueOf(client).Elem().FieldByName("client")
	if !field.IsValid() {
		return errors.New("Istio's client has changed: it has no field named client")
	}
	inner, ok := reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Interface().(*pb.IstioCertificateServiceClient)
	if !ok {
		return errors.New("Istio's client has changed: its field client is of another type")
	}
	*inner = &withIdentity{*inner, identity}
	return nil
}

type withIdentity struct {
	pb.IstioCertificateServiceClient
	identity string
}

func (w *withIdentity) CreateCertificate(
	ctx context.Context, request *pb.IstioCertificateRequest, options ...grpc.CallOption,
) (*pb.IstioCertificateResponse, error) {
	request.Metadata.Fields[security.ImpersonatedIdentity] = structpb.NewStringValue(w.identity)
	return w.IstioCertificateServiceClient.CreateCertificate(ctx, request, options...)
}
