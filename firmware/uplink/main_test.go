package uplink

import (
	"os"
	"testing"

	"subnetd/firmware/place"
)

func TestMain(m *testing.M) { os.Exit(place.Main(m)) }
