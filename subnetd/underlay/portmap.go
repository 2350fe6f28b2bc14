package underlay

import "context"

func (u *Underlay) portMapLoop(ctx context.Context) {
	for {
		select {
		case <-u.gateway:
		case <-ctx.Done():
			return
		}
	}
}
