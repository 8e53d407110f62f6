// ca-server: Istio's certificate authority behind its gRPC service, as istiod serves it, with the authorization of
// node agents that istiod does: the caller is a pod of a trusted service account, and may ask for the identities of the
// pods on its own node. The pods are in a fake API server; the caller is known by a token in a file.
package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"istio.io/istio/pilot/pkg/features"
	"istio.io/istio/pkg/cluster"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/kube/multicluster"
	"istio.io/istio/pkg/security"
	"istio.io/istio/pkg/util/sets"
	"istio.io/istio/security/pkg/pki/ca"
	"istio.io/istio/security/pkg/pki/util"
	caserver "istio.io/istio/security/pkg/server/ca"
)

func init() { commands["ca-server"] = serveCA }

// The pod that the node's agent is.
var agentPod = security.KubernetesInfo{
	PodName:           "mesh-agent-x",
	PodNamespace:      "mesh-system",
	PodUID:            "agent-uid",
	PodServiceAccount: "mesh-agent",
}

type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func serveCA(args []string) error {
	flags := flag.NewFlagSet("ca-server", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:0", "address to serve on")
	dir := flags.String("dir", ".", "where root.pem is written, and keys with --intermediate")
	tokenFile := flags.String("token-file", "", "the bearer token of the node's agent")
	clusterID := flags.String("cluster", "Kubernetes", "the cluster that the agent must name")
	maxTTL := flags.Duration("max-ttl", 24*time.Hour, "longest certificate")
	intermediate := flags.Bool("intermediate", false, "sign with an intermediate below the root")
	var pods list
	flags.Var(&pods, "pod", "NAMESPACE/SERVICEACCOUNT of a pod on the agent's node; again for more")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *tokenFile == "" {
		return errors.New("--token-file is needed")
	}

	options, err := authorityOptions(*dir, *intermediate, *maxTTL)
	if err != nil {
		return err
	}
	authority, err := ca.NewIstioCA(options)
	if err != nil {
		return err
	}

	account := types.NamespacedName{Namespace: agentPod.PodNamespace, Name: agentPod.PodServiceAccount}
	features.CATrustedNodeAccounts = sets.New(account)
	objects, err := podsOfNode(pods)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	defer close(stop)
	client := kube.NewFakeClient(objects...)
	clusters := multicluster.NewFakeController()
	service, err := caserver.New(authority, *maxTTL, []security.Authenticator{&tokenAuthenticator{*tokenFile}}, clusters)
	if err != nil {
		return err
	}
	clusters.Add(cluster.ID(*clusterID), client, stop)
	client.RunAndWait(stop)

	cert, key, err := authority.GenKeyCert([]string{"istiod.istio-system.svc", "localhost", "127.0.0.1"}, time.Hour, false)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return err
	}
	_, _, _, root := authority.GetCAKeyCertBundle().GetAll()
	if err := os.WriteFile(filepath.Join(*dir, "root.pem"), root, 0o644); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
	})))
	service.Register(server)
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ends
		server.GracefulStop()
	}()
	fmt.Println("listening", listener.Addr())
	return server.Serve(listener)
}

// authorityOptions makes a self-signed authority, or a root and the intermediate below it that signs.
func authorityOptions(dir string, intermediate bool, maxTTL time.Duration) (*ca.IstioCAOptions, error) {
	if !intermediate {
		return ca.NewSelfSignedDebugIstioCAOptions("", 24*time.Hour, maxTTL, maxTTL, "peers", 2048)
	}
	rootPem, rootKey, err := util.GenCertKeyFromOptions(util.CertOptions{
		TTL: 24 * time.Hour, Org: "peers root", IsCA: true, IsSelfSigned: true,
		ECSigAlg: util.EcdsaSigAlg, ECCCurve: util.P256Curve,
	})
	if err != nil {
		return nil, err
	}
	root, err := util.ParsePemEncodedCertificate(rootPem)
	if err != nil {
		return nil, err
	}
	signer, err := util.ParsePemEncodedKey(rootKey)
	if err != nil {
		return nil, err
	}
	certPem, keyPem, err := util.GenCertKeyFromOptions(util.CertOptions{
		TTL: 24 * time.Hour, Org: "peers intermediate", IsCA: true, SignerCert: root, SignerPriv: signer,
		ECSigAlg: util.EcdsaSigAlg, ECCCurve: util.P256Curve,
	})
	if err != nil {
		return nil, err
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string][]byte{
		"plugged-root.pem": rootPem, "ca-cert.pem": certPem, "ca-key.pem": keyPem,
		// Istio's documentation puts the root at the end of the chain as well.
		"cert-chain.pem": append(append([]byte{}, certPem...), rootPem...),
	} {
		if err := os.WriteFile(path(name), content, 0o600); err != nil {
			return nil, err
		}
	}
	return ca.NewPluggedCertIstioCAOptions(ca.SigningCAFileBundle{
		RootCertFile: path("plugged-root.pem"), CertChainFiles: []string{path("cert-chain.pem")},
		SigningCertFile: path("ca-cert.pem"), SigningKeyFile: path("ca-key.pem"),
	}, maxTTL, maxTTL, 2048)
}

// podsOfNode is the agent's pod and its neighbours, all on one node.
func podsOfNode(accounts []string) ([]runtime.Object, error) {
	pod := func(name, namespace, uid, account string) runtime.Object {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, UID: types.UID(uid)},
			Spec:       corev1.PodSpec{ServiceAccountName: account, NodeName: "node-1"},
		}
	}
	objects := []runtime.Object{
		pod(agentPod.PodName, agentPod.PodNamespace, agentPod.PodUID, agentPod.PodServiceAccount),
	}
	for at, text := range accounts {
		namespace, account, found := strings.Cut(text, "/")
		if !found {
			return nil, fmt.Errorf("--pod %s: want NAMESPACE/SERVICEACCOUNT", text)
		}
		objects = append(objects, pod(fmt.Sprintf("pod-%d", at), namespace, fmt.Sprintf("uid-%d", at), account))
	}
	return objects, nil
}

// tokenAuthenticator knows the agent by the token in a file, which is read again each time.
type tokenAuthenticator struct{ file string }

func (a *tokenAuthenticator) AuthenticatorType() string { return "token file" }

func (a *tokenAuthenticator) Authenticate(ctx security.AuthContext) (*security.Caller, error) {
	given, err := security.ExtractBearerToken(ctx.GrpcContext)
	if err != nil {
		return nil, err
	}
	wanted, err := os.ReadFile(a.file)
	if err != nil {
		return nil, err
	}
	if given != strings.TrimSpace(string(wanted)) {
		return nil, errors.New("another token")
	}
	return &security.Caller{
		AuthSource:     security.AuthSourceIDToken,
		Identities:     []string{"spiffe://cluster.local/ns/mesh-system/sa/mesh-agent"},
		KubernetesInfo: agentPod,
	}, nil
}
