package main

import _ "istio.io/istio/pkg/hbone"
