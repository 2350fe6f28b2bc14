// Package device stands in for one file of golang.zx2c4.com/wireguard/device:
// the sizes of its queues and buffers, which cannot be set otherwise. Upstream
// keeps 64 KiB for each packet and a thousand batches for each queue; a busy
// tunnel then takes more memory than many routers have.
package device

import "golang.zx2c4.com/wireguard/conn"

// Upstream's names. A packet of ours has 1,280 bytes and 32 around it.
const (
	QueueStagedSize            = conn.IdealBatchSize
	QueueOutboundSize          = 128
	QueueInboundSize           = 128
	QueueHandshakeSize         = 1024
	MaxSegmentSize             = 2048
	PreallocatedBuffersPerPool = 0
)
