package client

import "time"

// SetPoll changes how often c asks how a round stands where the watch tells it nothing. Call it before Get.
func (c *Client) SetPoll(every time.Duration) { c.poll = every }
