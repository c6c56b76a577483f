// A CSI driver that does nothing: the mock service of Kubernetes's own end-to-end tests, behind a socket, with itself
// registered at the kubelet. What a cluster and its sidecars take for a volume without any storage is measured with it.
//
// The mock keeps its volumes in memory, controller and node alike, so one process is both and pods have to run on its node.
package main

import (
	"context"
	"flag"
	"net"
	"os"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"k8s.io/kubernetes/test/e2e/storage/drivers/csi-test/driver"
	"k8s.io/kubernetes/test/e2e/storage/drivers/csi-test/mock/service"
)

type registrar struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
}

func (r registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              r.name,
		Endpoint:          r.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		klog.Fatalf("the kubelet refuses the driver: %s", status.Error)
	}
	klog.Info("registered")
	return &registration.RegistrationStatusResponse{}, nil
}

// listen opens a socket in the place of one that an earlier process left.
func listen(path string) net.Listener {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		klog.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		klog.Fatal(err)
	}
	return l
}

func main() {
	name := flag.String("name", "", "the driver's name")
	endpoint := flag.String("endpoint", "", "its CSI socket")
	plugin := flag.String("registration", "", "its socket in the kubelet's folder of plugins")
	flag.Parse()
	mock := service.New(service.Config{DriverName: *name, DisableAttach: true, PermissiveTargetPath: true})
	servers := &driver.CSIDriverServers{Controller: mock, Identity: mock, Node: mock}
	// Nothing is logged of a call: a driver that does nothing does not write it down either.
	plain := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return handler(ctx, req)
	}
	if err := driver.NewCSIDriver(servers).Start(listen(*endpoint), plain); err != nil {
		klog.Fatal(err)
	}
	kubelet := grpc.NewServer()
	registration.RegisterRegistrationServer(kubelet, registrar{name: *name, endpoint: *endpoint})
	klog.Fatal(kubelet.Serve(listen(*plugin)))
}
