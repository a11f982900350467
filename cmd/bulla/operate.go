package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

// operateFlags are those of the commands that have the broker work with a key.
type operateFlags struct {
	version   string
	signature string // file
	aad       string // file
	der       bool

	loaded struct{ signature, aad []byte } // what the files hold
}

// operated is what such a command has to say in JSON. Of the last three one is there.
type operated struct {
	Name       string         `json:"name"`
	Version    secret.Version `json:"version"`
	Type       secret.Type    `json:"type"`
	Operation  keys.Operation `json:"operation"`
	SessionID  string         `json:"session_id"`
	Signature  []byte         `json:"signature,omitempty"`
	MAC        []byte         `json:"mac,omitempty"`
	Ciphertext []byte         `json:"ciphertext,omitempty"`
	Plaintext  *[]byte        `json:"plaintext,omitempty"`
	Valid      *bool          `json:"valid,omitempty"`
}

func newSignCommand(a *app) *cobra.Command {
	var f operateFlags
	c := a.operateCommand(&f, "sign", "Have the broker sign what comes on stdin",
		"Signs a message of at most 65536 bytes from stdin with a key that never leaves the broker, and writes the\n"+
			"signature to stdout: 64 bytes (in base64 on a terminal). An ecdsa-p256 key signs the SHA-256 of the message\n"+
			"and gives r and s as ES256 of JOSE has them, or with --der as OpenSSL and X.509 do.",
		"  bulla sign demo/signing <release.txt >release.sig\n  bulla sign demo/signing --der <release.txt >release.der",
		func(ctx context.Context, s *client.Secret, input []byte) (operated, []byte, error) {
			if err := f.derFits(s); err != nil {
				return operated{}, nil, err
			}
			signature, err := s.Sign(ctx, input)
			if err == nil && f.der {
				signature, err = keys.EncodeDER(signature)
			}
			return operated{Operation: keys.Sign, Signature: signature}, signature, err
		})
	c.Flags().BoolVar(&f.der, "der", false, "write an ECDSA signature in ASN.1")
	return c
}

func newVerifyCommand(a *app) *cobra.Command {
	var f operateFlags
	c := a.operateCommand(&f, "verify", "Have the broker check a signature or a MAC",
		"Checks the signature, or the MAC, of the message on stdin with a key that never leaves the broker. It prints\n"+
			"\"valid\", or fails with exit code 5.",
		"  bulla verify demo/signing --signature release.sig <release.txt",
		func(ctx context.Context, s *client.Secret, input []byte) (operated, []byte, error) {
			if err := f.derFits(s); err != nil {
				return operated{}, nil, err
			}
			d, check := operated{Operation: keys.Verify, Valid: new(bool)}, s.Verify
			if s.KeyType() == secret.TypeHMACSHA256 {
				d.Operation, check = keys.VerifyMAC, s.VerifyMAC
			}
			err := check(ctx, input, f.loaded.signature)
			*d.Valid = err == nil
			return d, []byte("valid\n"), err
		})
	c.Flags().StringVar(&f.signature, "signature", "", "file that holds the signature or the MAC, as sign and mac write them (required)")
	c.Flags().BoolVar(&f.der, "der", false, "the file holds an ECDSA signature in ASN.1")
	return c
}

// derFits refuses --der for signatures that are no ECDSA: X.509 and OpenSSL have those of Ed25519 as they are, and would take
// none that was put into ASN.1.
func (f *operateFlags) derFits(s *client.Secret) error {
	if t := s.KeyType(); f.der && t != secret.TypeECDSAP256 {
		return fmt.Errorf("%w: --der is for keys of type ecdsa-p256, and %s is of type %s: leave it out", client.ErrInvalid, s.Name, t)
	}
	return nil
}

func newMACCommand(a *app) *cobra.Command {
	var f operateFlags
	return a.operateCommand(&f, "mac", "Have the broker make a MAC of what comes on stdin",
		"Makes an HMAC-SHA-256 of a message of at most 65536 bytes from stdin with a key that never leaves the broker,\n"+
			"and writes its 32 bytes to stdout (in base64 on a terminal). `bulla verify` checks it.",
		"  bulla mac demo/mac <message >message.mac",
		func(ctx context.Context, s *client.Secret, input []byte) (operated, []byte, error) {
			mac, err := s.MAC(ctx, input)
			return operated{Operation: keys.MAC, MAC: mac}, mac, err
		})
}

func newEncryptCommand(a *app) *cobra.Command {
	var f operateFlags
	c := a.operateCommand(&f, "encrypt", "Have the broker encrypt what comes on stdin",
		"Encrypts at most 65536 bytes from stdin with a key that never leaves the broker, and writes the ciphertext to\n"+
			"stdout (in base64 on a terminal). It says which version of the key it needs, and is 33 bytes longer.",
		"  bulla encrypt demo/box <plain >sealed\n  bulla decrypt demo/box <sealed",
		func(ctx context.Context, s *client.Secret, input []byte) (operated, []byte, error) {
			out, err := s.Encrypt(ctx, input, f.loaded.aad)
			return operated{Operation: keys.Encrypt, Ciphertext: out}, out, err
		})
	c.Flags().StringVar(&f.aad, "aad", "", "file with associated data, without which the ciphertext does not open (at most 4096 bytes)")
	return c
}

func newDecryptCommand(a *app) *cobra.Command {
	var f operateFlags
	c := a.operateCommand(&f, "decrypt", "Have the broker decrypt what comes on stdin",
		"Decrypts what `bulla encrypt` made, from stdin to stdout, with the version of the key that it was made with.\n"+
			"What does not open fails with exit code 5.",
		"  bulla decrypt demo/box <sealed >plain",
		func(ctx context.Context, s *client.Secret, input []byte) (operated, []byte, error) {
			out, err := s.Decrypt(ctx, input, f.loaded.aad)
			return operated{Operation: keys.Decrypt, Plaintext: &out}, out, err
		})
	c.Flags().StringVar(&f.aad, "aad", "", "file with the associated data that it was encrypted with")
	return c
}

// operateCommand makes a command that does one operation in a session of one use.
func (a *app) operateCommand(f *operateFlags, name, short, long, example string, do func(context.Context, *client.Secret, []byte) (operated, []byte, error)) *cobra.Command {
	c := &cobra.Command{
		Use: name + " NAME [flags]", Short: short, Long: long, Example: example,
		Args: argument("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := secret.ParseName(args[0]); err != nil {
				return usage("%v", err)
			}
			if name == "verify" && f.signature == "" {
				return usage("name the file that holds the signature with --signature")
			}
			if err := f.load(); err != nil {
				return err
			}
			return a.operate(c, args[0], *f, do)
		},
	}
	c.Flags().StringVar(&f.version, "version", "", "version of the key (for decrypt the one that the ciphertext names, else the current one)")
	a.addIdentity(c)
	a.addDevice(c)
	a.addToken(c)
	return c
}

func (a *app) operate(c *cobra.Command, name string, f operateFlags, do func(context.Context, *client.Secret, []byte) (operated, []byte, error)) error {
	if _, err := a.identity.config(); err != nil { // before anything is read
		return err
	}
	a.holdsSecrets()
	limit := int64(keys.MaxInput)
	if c.Name() == "decrypt" {
		limit += keys.Overhead
	}
	input, err := a.readInput(limit)
	if err != nil {
		return err
	}
	defer clear(input)
	opts, err := f.options(c, input)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(c.Context(), a.timeout, errTimeout)
	defer cancel()
	broker, err := a.connect(ctx, true)
	if err != nil {
		return err
	}
	defer broker.Close()
	s, err := a.deliver(ctx, broker, name, opts...)
	if err != nil {
		return err
	}
	defer s.Close()
	d, out, err := do(ctx, s, input)
	defer clear(out)
	d.Name, d.Version, d.Type, d.SessionID = s.Name, s.Version, s.KeyType(), s.SessionID
	switch {
	case d.Valid != nil && errors.Is(err, client.ErrNotAuthentic):
		return &answered{err, d}
	case errors.Is(err, client.ErrInvalid): // the use was not spent
		return errors.Join(err, s.Release(ctx))
	case err != nil:
		return err
	}
	if a.json() {
		return show.JSON(a.stdout, d)
	}
	if text := d.Valid != nil || d.Plaintext != nil; !text && isTerminal(a.stdout) {
		out = append(base64.StdEncoding.AppendEncode(nil, out), '\n')
	}
	if _, err := a.stdout.Write(out); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// options asks for a session of one use, at grade proxied.
func (f operateFlags) options(c *cobra.Command, input []byte) ([]client.GetOption, error) {
	opts := []client.GetOption{client.WithGrade("proxied"), client.WithUses(1)}
	switch {
	case c.Flags().Changed("version"):
		v, err := secret.ParseVersion(f.version)
		if err != nil {
			return nil, usage("--version: %v", err)
		}
		opts = append(opts, client.WithVersion(v))
	case c.Name() == "decrypt":
		v, err := client.CiphertextVersion(input)
		if err != nil {
			return nil, err
		}
		opts = append(opts, client.WithVersion(v))
	}
	return opts, nil
}

// readInput reads what is to be signed, and so on, from stdin.
func (a *app) readInput(limit int64) ([]byte, error) {
	if isTerminal(a.stdin) {
		return nil, usage("the input is read from stdin, which is a terminal: use `< FILE` or a pipe")
	}
	input, err := readAtMost(a.stdin, limit)
	switch {
	case errors.Is(err, errTooLong):
		return nil, usage("the input on stdin is longer than %d bytes: sign or MAC a list of hashes; encrypt a key, and the rest with that key", limit)
	case errors.Is(err, os.ErrClosed):
		return nil, usage("there is no stdin to read the input from")
	case err != nil:
		return nil, fmt.Errorf("read the input: %w", err)
	}
	return input, nil
}

// load reads the files that the flags name, before a session is spent on them.
func (f *operateFlags) load() (err error) {
	if f.aad != "" {
		if f.loaded.aad, err = readFile("--aad", f.aad, keys.MaxAssociatedData); err != nil {
			return err
		}
	}
	if f.signature == "" {
		return nil
	}
	signature, err := readFile("--signature", f.signature, 1<<10)
	if err != nil {
		return err
	}
	if f.der {
		if signature, err = keys.DecodeDER(signature); err != nil {
			return fmt.Errorf("%w: %s holds no ECDSA signature in ASN.1", client.ErrNotAuthentic, f.signature)
		}
	}
	if len(signature) == 0 || len(signature) > keys.SignatureSize {
		return fmt.Errorf("%w: %s has %d bytes, as no signature and no MAC has", client.ErrNotAuthentic, f.signature, len(signature))
	}
	f.loaded.signature = signature
	return nil
}

// pemOf is a public key as OpenSSL reads it.
func pemOf(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

// publicKey prints the public half of a proxied key, or says that there is no value to print.
func (a *app) publicKey(ctx context.Context, s *client.Secret, asked bool) error {
	if err := s.Release(ctx); err != nil {
		a.warn("the session could not be closed, and ends by itself: %v", err)
	}
	if !asked {
		return fmt.Errorf("%s is a key of type %s: %w", s.Name, s.KeyType(), client.ErrProxied)
	}
	if s.PublicKey() == nil {
		return fmt.Errorf("%s has no public key: it is of type %s, grade %s", s.Name, s.KeyType(), s.Grade)
	}
	jwk, err := s.PublicJWK()
	if err != nil {
		return err
	}
	text, err := pemOf(s.PublicKey())
	if err != nil {
		return err
	}
	return a.print(struct {
		Name      string          `json:"name"`
		Version   secret.Version  `json:"version"`
		Type      secret.Type     `json:"type"`
		PublicKey json.RawMessage `json:"public_key"`
		PEM       string          `json:"pem"`
		SessionID string          `json:"session_id"`
	}{s.Name, s.Version, s.KeyType(), jwk, text, s.SessionID}, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}
